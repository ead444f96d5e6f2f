"""Shards of features from shards of pictures: what tools/cache_features.py makes."""

import math
import shutil
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import torch

from diffmoe_scale.config.check import RunError, require
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.check import bucket_fields, check_shapes
from diffmoe_scale.data.features.source import TEACHER, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder, check_picture_sizes
from diffmoe_scale.encoders.text.build import build_frozen_encoders
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.vision.teacher import Teacher
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.prepare.encoders import Encoders
from diffmoe_scale.prepare.encoding import LEFT_OUT, FeatureWriter
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.options import FeatureOptions, Tell
from diffmoe_scale.prepare.prepared import training_settings
from diffmoe_scale.prepare.publish import begin, publish, read_set_manifest, to_json
from diffmoe_scale.prepare.sources import Sources, state_of
from diffmoe_scale.prepare.space import parse_size, show_size, size_of
from diffmoe_scale.words import counted

FEATURES_FILE = "features.json"
FEATURES_FORMAT = 2
"""Of what is written; sets of another one are not gone on with."""


@dataclass(frozen=True)
class Share:
    """Which of several processes this is, and what it computes with."""

    rank: int
    world_size: int
    device: torch.device


def cache_features(options: FeatureOptions, config: Config, share: Share, *, tell: Tell = print) -> None:
    """Write the share of the shards of this process; the one that finds the set complete publishes it.

    Raises: ValueError for other shards or settings than those of an earlier call, and too little space;
    RunError where the set outgrows its budget.
    """
    tell_once = tell if share.rank == 0 else _say_nothing
    require(
        config.autoencoder.kind != "pixels",
        "autoencoder.kind",
        "pixels",
        "'diffusers': pixels need no cache; to shrink them, see prepare_shards --resize",
    )
    budget = parse_size(options.budget) if options.budget else math.inf
    reader = _read_pictures(options, config)
    encoders = build_encoders(config, device=share.device, tell=tell_once)
    feature_set = describe_features(config, encoders, precision=options.precision)
    writer = FeatureWriter(reader, encoders, feature_set, batch=options.batch, rank=share.rank)
    estimate = writer.estimate_size()
    tell_once(
        f"{counted(reader.num_samples, 'sample')} in {counted(len(reader.catalog.paths), 'shard')}: "
        f"about {show_size(estimate)} "
        f"({estimate / reader.num_samples:,.0f} bytes a sample)"
    )
    if estimate > budget:
        raise ValueError(
            f"--budget is {options.budget}, less than the {show_size(estimate)} needed; "
            "raise it, give fewer shards or --precision fp8"
        )
    if options.dry_run:
        return
    folder = begin(
        options.output,
        manifest=FEATURES_FILE,
        made_with=_made_with(config, feature_set.source),
        sources=sources_of_shards(reader.catalog),
        is_overwritten=options.overwrite,
    )
    if folder is None:
        tell_once(f"{options.output}: these features are there already, of the same shards and settings")
        return
    feature_set.save(folder)
    _write(writer, folder, options, share, budget=budget, estimate=estimate)
    if all((folder / reader.catalog.paths[number].name).is_file() for number in _filled(reader)):
        _finish(folder, reader, options, tell=tell, estimate=estimate)


def _say_nothing(line: str) -> None:
    """For all ranks but the first."""


def _read_pictures(options: FeatureOptions, config: Config) -> Reader:
    shards = list(options.input)
    reader = build_reader(config.data, shards, model=config.model, seed=0, buckets=config.buckets)
    require(
        reader.source.features is None, "--input", shards, "shards of pictures; these hold features already"
    )
    names = [path.name for path in reader.catalog.paths]
    require(
        len(set(names)) == len(names), "--input", shards, "shards of different names; cache folder by folder"
    )
    return reader


def _filled(reader: Reader) -> list[int]:
    """Numbers of the shards that have samples."""
    return [number for number, count in enumerate(reader.catalog.counts) if count]


def _write(
    writer: FeatureWriter,
    folder: Path,
    options: FeatureOptions,
    share: Share,
    *,
    budget: float,
    estimate: float,
) -> None:
    """The shards of this rank that are not there yet."""
    reader = writer.reader
    numbers, paths = _filled(reader), reader.catalog.paths
    missing = [number for number in numbers if not (folder / paths[number].name).is_file()]
    remaining = estimate * sum(reader.catalog.counts[number] for number in missing) / reader.num_samples
    free = shutil.disk_usage(folder).free
    if remaining > free:
        raise ValueError(
            f"{options.output} needs {show_size(remaining)} more, but its disk has {show_size(free)} left"
        )
    mine = numbers[share.rank :: share.world_size]
    for _ in writer.write(folder, [number for number in mine if number in set(missing)]):
        written = size_of(folder)
        if written > budget:
            raise RunError(
                f"{folder} has {show_size(written)}, more than --budget; "
                "raise it and start again: finished shards are kept"
            )


def _finish(folder: Path, reader: Reader, options: FeatureOptions, *, tell: Tell, estimate: float) -> None:
    """Give a complete set its name, and say what it lacks."""
    left_out = Losses()
    for number, path in enumerate(reader.catalog.paths):
        for problem in reader.catalog.index(number).problems:
            left_out.add(problem.kind, f"{path.name}/{problem.name}")
        if reader.catalog.counts[number] == 0:
            left_out.add("shard without a sample", path.name)
    try:
        for file in sorted((folder / LEFT_OUT).glob("*.json")):
            left_out.extend(Losses.from_json(parse_json(file.read_text(encoding="utf-8"))))
        begun = read_set_manifest(folder, FEATURES_FILE) or {}
        replace_file(folder / FEATURES_FILE, to_json(begun | {"left_out": left_out.to_json()}))
        shutil.rmtree(folder / LEFT_OUT, ignore_errors=True)
    except FileNotFoundError:
        return  # another rank was faster
    publish(options.output)
    tell(f"{options.output}: {show_size(size_of(options.output))} (estimated {show_size(estimate)})")
    if left_out.counts:
        tell(f"left out ({left_out.counts.total():,}):")
        for line in left_out.lines():
            tell(line)
    tell(f"train on them: {training_settings(options.output, [path.name for path in reader.catalog.paths])}")


def _made_with(config: Config, source: FeatureSource) -> dict[str, object]:
    """What the features depend on, but for the shards."""
    packages = ["torch"] + (["diffusers"] if config.autoencoder.kind != "pixels" else [])
    kinds = {encoder.kind for encoder in config.text.listed()} if source.text else set()
    packages += ["open_clip_torch"] if "open_clip" in kinds else []
    packages += ["transformers"] if "transformers" in kinds or source.teacher else []
    return (
        dict.fromkeys(TEACHER)
        | source.stated()
        | {
            "format": FEATURES_FORMAT,
            "aspects": list(source.aspects),
            "caption_weights": dict(config.data.caption_weights),
            "background": list(config.data.background),
            "versions": {name: version(name) for name in packages},
        }
    )


def sources_of_shards(catalog: ShardCatalog) -> Sources:
    """State of each shard by name; of a copy of a URL, what its index says: the copy's time tells nothing."""
    states = {}
    for number, path in enumerate(catalog.paths):
        if not catalog.is_remote(number):
            states[path.name] = state_of(path)
            continue
        index = catalog.index(number)
        digest = blake2b(digest_size=16)
        for array in (index.keys, index.offset, index.size):
            digest.update(array.tobytes())
        states[path.name] = f"{catalog.sizes[number]} bytes, index {digest.hexdigest()}"
    return Sources(states)


def build_encoders(config: Config, *, device: torch.device, tell: Tell) -> Encoders:
    """The autoencoder and the frozen text encoders of a config, with their weights."""
    text = TextEncoders()
    if config.model.conditioning == "text":
        text = build_frozen_encoders(config.text)
        text.load(device)
        if config.text.trained is not None:
            tell(
                "a 'sentencepiece' encoder is trained along: captions are kept for it, and its features are "
                "not cached"
            )
    teacher = None
    if config.alignment.encoder:
        teacher = Teacher(config.alignment.encoder, precision=config.alignment.precision)
    return Encoders(build_autoencoder(config.autoencoder, device=device), text, device, teacher)


def describe_features(config: Config, encoders: Encoders, *, precision: str) -> FeatureSet:
    """What the features will be made by, and those of the empty caption. Raises: ValueError if pictures and
    autoencoder do not fit each other."""
    size, buckets, factor = config.model.image_size, config.buckets, encoders.autoencoder.factor
    check_picture_sizes(config, factor=factor)
    aspects, step = bucket_fields(buckets)
    teacher = encoders.teacher
    source = FeatureSource(
        autoencoder=encoders.autoencoder.fingerprint(),
        text=encoders.text.fingerprint(),
        channels=encoders.autoencoder.channels,
        factor=factor,
        image_size=size,
        aspects=aspects,
        step=step,
        num_views=2 if config.data.horizontal_flip else 1,
        precision=precision,
        teacher=teacher.fingerprint() if teacher else "",
        teacher_width=teacher.width if teacher else 0,
        teacher_patch=config.model.patch_size if teacher else 0,
    )
    check_shapes(source, image_size=size, buckets=buckets)
    return FeatureSet(source, next(iter(encoders.captions([""], precision=precision)), ()))
