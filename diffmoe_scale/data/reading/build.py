"""A reader of the shards that patterns name, or of data sets by weight."""

import itertools
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import BucketConfig, DataConfig, DatasetConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.check import check_shapes
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.data.order.buckets import full_sizes
from diffmoe_scale.data.order.mixture import mix
from diffmoe_scale.data.order.order import BucketOrder, Order, ShuffledOrder
from diffmoe_scale.data.order.size import ImageBuckets, find_sizes
from diffmoe_scale.data.reading.conditions import CHECKED_SAMPLES, check_conditions
from diffmoe_scale.data.reading.judge import JUDGED_SAMPLES
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import expand_patterns, pattern_groups, remote_shards
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


def open_reader(config: Config, patterns: Sequence[str | DatasetConfig]) -> Reader:
    """A reader of `data.train` or `data.validation` as a run reads it. Raises: as `build_reader`."""
    return build_reader(
        config.data,
        patterns,
        model=config.model,
        seed=config.run.seed,
        buckets=config.buckets,
        trains_text=config.text.trained is not None,
    )


def build_reader(
    config: DataConfig,
    patterns: Sequence[str | DatasetConfig],
    *,
    model: ModelConfig,
    seed: int,
    buckets: BucketConfig | None = None,
    trains_text: bool = False,
) -> "Reader":
    """A reader of the shards that the patterns name, or of data sets by weight; makes missing indexes.
    Without `buckets` all images are cut to squares. A run that `trains_text` reads captions beside features
    of them.

    Raises: ValueError for patterns without a file, shards without a sample, samples without captions (or
    labels), features of images of other sizes; OSError for a URL that cannot be read and has no index (or
    sizes, with buckets).
    """
    remote = remote_shards(config)
    datasets = [entry for entry in patterns if isinstance(entry, DatasetConfig)]
    groups = [expand_patterns(group, remote) for group in pattern_groups(patterns)]
    paths = [path for group in groups for path in group]
    buckets = buckets or BucketConfig()
    features = find_feature_set(paths, remote)
    if features is not None:
        check_shapes(features.source, image_size=model.image_size, buckets=buckets)
    index_folder = Path(config.index_folder) if config.index_folder else None
    on_fetch = partial(find_sizes, has_features=features is not None) if buckets.enabled else None
    catalog = ShardCatalog(paths, index_folder=index_folder, remote=remote, on_fetch=on_fetch)
    _check_cache(config, catalog, [len(group) for group in groups])
    _check_losses(config, catalog)
    images = None
    if buckets.enabled:
        ratios = [size.width / size.height for size in full_sizes(buckets, model.image_size)]
        images = ImageBuckets(catalog, buckets.aspects, ratios=ratios, has_features=features is not None)
    reader = Reader(
        config,
        catalog,
        model=model,
        seed=seed,
        order=_build_order(config, catalog, images, datasets=datasets, groups=groups, seed=seed),
        buckets=buckets,
        images=images,
        features=features,
        reads_text=trains_text,
    )
    check_conditions(reader.source, reader.places(CHECKED_SAMPLES))
    reader.count_retries()
    return reader


def _check_losses(config: DataConfig, catalog: ShardCatalog) -> None:
    """Log what the shards hold. Raises: ValueError where too much of it is lost."""
    num_samples, num_lost = sum(catalog.counts), catalog.problems.total()
    num_all = num_samples + num_lost
    if num_all >= JUDGED_SAMPLES and num_lost > config.max_bad_fraction * num_all:
        raise ValueError(
            f"indexing the shards found {counted(num_lost, 'problem')} ({dict(catalog.problems)}) beside "
            f"{counted(num_samples, 'good sample')}, more than data.max_bad_fraction "
            f"({config.max_bad_fraction}); the log of the first start names them; repair the shards or raise "
            "the limit"
        )
    lost = f"; problems: {dict(catalog.problems)}" if catalog.problems else ""
    logger.info("%s in %s%s", counted(num_samples, "sample"), counted(len(catalog.paths), "shard"), lost)


def _build_order(
    config: DataConfig,
    catalog: ShardCatalog,
    images: ImageBuckets | None,
    *,
    datasets: Sequence[DatasetConfig],
    groups: Sequence[Sequence[Path]],
    seed: int,
) -> Order:
    """Of all shards, or of data sets (each with its group of shards) by weight; bucket by bucket where there
    are buckets."""
    counts_by_bucket = [catalog.counts] if images is None else images.counts
    orders: Sequence[Order]
    if datasets:
        _describe_datasets(datasets, _split(catalog.counts, groups))
        split = [_split(counts, groups) for counts in counts_by_bucket]
        weights = [entry.weight for entry in datasets]
        orders, totals = mix(split, weights, seed=seed, block=config.shuffle_block)
    else:
        orders = [ShuffledOrder(counts, seed=seed, block=config.shuffle_block) for counts in counts_by_bucket]
        totals = [sum(counts) for counts in counts_by_bucket]
    return orders[0] if images is None else BucketOrder(orders, images.rows, shares=totals)


def _describe_datasets(datasets: Sequence[DatasetConfig], counts_by_set: Sequence[Sequence[int]]) -> None:
    """Log each. Raises: ValueError for one without samples."""
    for number, (entry, counts) in enumerate(zip(datasets, counts_by_set, strict=True)):
        logger.info(
            "data set %d: %s an epoch, weight %g, %s",
            number,
            counted(sum(counts), "sample"),
            entry.weight,
            ", ".join(entry.shards),
        )
        require(sum(counts) > 0, f"data.train.{number}.shards", entry.shards, "shards with samples")


def _split(counts: Sequence[int], groups: Sequence[Sequence[Path]]) -> list[Sequence[int]]:
    ends = list(itertools.accumulate(map(len, groups)))
    return [counts[end - len(group) : end] for end, group in zip(ends, groups, strict=True)]


def _check_cache(config: DataConfig, catalog: ShardCatalog, group_sizes: Sequence[int]) -> None:
    """Raises: ValueError if the copies of shards that are read together exceed the cache: each sample would
    fetch a shard anew."""
    sizes = sorted(
        (size for shard, size in enumerate(catalog.sizes) if catalog.is_remote(shard)), reverse=True
    )
    # Two: at the end of a block, shards of the next are opened while others still read this one.
    together = 2 * sum(min(config.shuffle_block, group) for group in group_sizes)
    needed_gib = sum(sizes[:together]) / 2**30
    if needed_gib > config.cache_gib:
        raise ValueError(
            f"data.cache_gib is {config.cache_gib:g}, but two blocks of data.shuffle_block "
            f"({config.shuffle_block}) remote shards take "
            f"{needed_gib:.3g} GiB; raise data.cache_gib or lower data.shuffle_block"
        )
