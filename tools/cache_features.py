"""Computes the latents and text features of shards once, before training: shards of KEY.safetensors beside captions and labels."""

import argparse
import itertools
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffmoe_scale.config.check import require
from diffmoe_scale.config.load import describe_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.batch import Sample, to_unit_range
from diffmoe_scale.data.buckets import Chunk
from diffmoe_scale.data.features import (
    FEATURE_SUFFIX,
    PRECISIONS,
    CaptionFeatures,
    FeatureSet,
    FeatureSource,
    check_shapes,
    pack_sample,
    to_stored,
)
from diffmoe_scale.data.publish import begin, publish, write_shard
from diffmoe_scale.data.shards import Reader, build_reader
from diffmoe_scale.data.source import SampleSource
from diffmoe_scale.encoders.autoencoder import Autoencoder, build_autoencoder
from diffmoe_scale.encoders.text import TextEncoder, build_text_encoder
from diffmoe_scale.telemetry.log import silence_packages

MANIFEST = "features.json"
KEPT_SUFFIXES = ("txt", "json", "cls")
JUDGED_SAMPLES = 2000
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Encoders:
    """`text` is None where captions are not encoded: in class mode, and for an encoder that is trained along."""

    autoencoder: Autoencoder
    text: TextEncoder | None
    device: torch.device

    @torch.no_grad()
    def captions(self, texts: Sequence[str], *, precision: str) -> list[CaptionFeatures]:
        """Features of each caption, cut to its tokens, in the stored format."""
        if self.text is None or not texts:
            return []
        found = self.text(self.text.tokenize(list(texts)).to(self.device))
        lengths = found.mask_BL.sum(1).tolist()
        return [
            CaptionFeatures(to_stored(tokens_LT[:length], precision), to_stored(pooled_P, precision))
            for tokens_LT, pooled_P, length in zip(found.tokens_BLT, found.pooled_BV, lengths, strict=True)
        ]

    def views(self, images_BCHW: Tensor, num_views: int) -> Tensor:
        """Latents [B, V, C, H, W] of the images and, for two views, of the mirrored ones."""
        views = [images_BCHW, images_BCHW.flip(-1)][:num_views]
        return torch.stack([self.autoencoder.encode(view.to(self.device)) for view in views], dim=1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cache_features",
        description=f"{__doc__} Started by torchrun or srun, each rank takes its share of the shards; the same command again goes on "
        "where it was stopped. Latents are the autoencoder's mean, as in training from pictures.",
        epilog="settings (section.key=default):" + describe_config(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file of the training; its autoencoder, text, model, data and buckets settings count")
    add("--input", action="append", required=True, help="shards of pictures: a path, glob or brace list; may be given several times")
    add("--output", type=Path, required=True, help="folder to make, with shards of the same names")
    add("--precision", choices=tuple(PRECISIONS), default="bf16", help="stored numbers (default: bf16; fp8 is e4m3, half the size)")
    add("--batch", type=int, default=32, help="pictures encoded at once (default: 32)")
    add("--budget", default="", help="largest size of the output in bytes, such as 500G; more is refused before the start (default: the free space)")
    add("--dry-run", action="store_true", help="print the size and stop")
    add("--overwrite", action="store_true", help="replace features made with other settings")
    add("settings", nargs="*", metavar="key.sub=value", help="settings that override the file's")
    parsed = parser.parse_intermixed_args(arguments)
    try:
        return cache_features(parsed, load_config(parsed.config, parsed.settings))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def cache_features(parsed: argparse.Namespace, config: Config) -> int:
    silence_packages()
    from diffmoe_scale.parallel.context import adopt_launcher_variables, choose_device, share_cores

    rank = adopt_launcher_variables()
    local_rank = int(os.environ["LOCAL_RANK"])
    share_cores(local_rank)
    require(parsed.batch >= 1, "--batch", parsed.batch, "at least 1")
    require(
        config.autoencoder.kind != "pixels", "autoencoder.kind", "pixels", "'kl': pixels need no cache; to shrink them, see prepare_shards --resize"
    )
    budget = parse_size(parsed.budget) if parsed.budget else math.inf
    reader = build_reader(config.data, parsed.input, model=config.model, seed=0, buckets=config.buckets)
    require(reader.source.features is None, "--input", parsed.input, "shards of pictures; these hold features already")
    names = [path.name for path in reader.catalog.paths]
    require(len(set(names)) == len(names), "--input", parsed.input, "shards of different names; cache folder by folder")
    encoders = build_encoders(config, device=choose_device(local_rank))
    feature_set = describe_features(config, encoders, precision=parsed.precision)
    estimate = estimate_size(reader, encoders, feature_set)
    if rank == 0:
        print(
            f"{reader.num_samples} samples in {len(names)} shards: about {show_size(estimate)} ({estimate / reader.num_samples:,.0f} bytes a sample)"
        )
    if estimate > budget:
        raise ValueError(f"--budget is {parsed.budget}, less than the {show_size(estimate)} needed; raise it, give fewer shards or --precision fp8")
    if parsed.dry_run:
        return 0
    made_with = asdict(feature_set.source) | {
        "aspects": list(feature_set.source.aspects),
        "shards": dict(zip(names, reader.catalog.counts, strict=True)),
    }
    folder = begin(parsed.output, manifest=MANIFEST, made_with=made_with, is_overwritten=parsed.overwrite)
    if folder is None:
        print(f"{parsed.output}: these features are there already")
        return 0
    # The index of a shard may say that there is nothing in it.
    numbers = [number for number, count in enumerate(reader.catalog.counts) if count]
    missing = [number for number in numbers if not (folder / names[number]).is_file()]
    remaining = estimate * sum(reader.catalog.counts[number] for number in missing) / reader.num_samples
    free = shutil.disk_usage(folder).free
    if remaining > free:
        raise ValueError(f"{parsed.output} needs {show_size(remaining)} more, but its disk has {show_size(free)} left")
    feature_set.save(folder)
    mine = numbers[rank :: int(os.environ["WORLD_SIZE"])]
    encode_shards(folder, [number for number in mine if number in set(missing)], reader, encoders, feature_set, batch=parsed.batch, budget=budget)
    if all((folder / names[number]).is_file() for number in numbers):
        publish(parsed.output)
        print(f"{parsed.output}: {show_size(sum(path.stat().st_size for path in parsed.output.glob('*.tar')))} (estimated {show_size(estimate)})")
    return 0


def build_encoders(config: Config, *, device: torch.device) -> Encoders:
    text = None
    if config.model.conditioning == "text" and config.text.kind == "open_clip":
        text = build_text_encoder(config.text, tokenizer_path=RunDirectory(Path(config.run.directory)).tokenizer).to(device)
    elif config.model.conditioning == "text":
        print("text.kind is 'sentencepiece', an encoder that is trained along: captions are kept and their features are not cached")
    return Encoders(build_autoencoder(config.autoencoder, device=device), text, device)


def describe_features(config: Config, encoders: Encoders, *, precision: str) -> FeatureSet:
    size, buckets, factor = config.model.image_size, config.buckets, encoders.autoencoder.factor
    require(size % factor == 0, "model.image_size", size, f"a multiple of {factor}, by which the autoencoder shrinks images")
    multiple = factor * config.model.patch_size
    is_whole = not buckets.enabled or buckets.step % multiple == 0
    require(is_whole, "buckets.step", buckets.step, f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)")
    source = FeatureSource(
        autoencoder=encoders.autoencoder.fingerprint(),
        text=encoders.text.fingerprint() if encoders.text else "",
        channels=encoders.autoencoder.channels,
        factor=factor,
        image_size=size,
        aspects=buckets.aspects if buckets.enabled else (),
        step=buckets.step if buckets.enabled else 0,
        num_views=2 if config.data.horizontal_flip else 1,
        precision=precision,
    )
    check_shapes(source, image_size=size, buckets=buckets)
    return FeatureSet(source, next(iter(encoders.captions([""], precision=precision)), None))


def estimate_size(reader: Reader, encoders: Encoders, features: FeatureSet) -> float:
    """Bytes of all shards: those of some samples spread over the set, computed with their real captions and empty features."""
    places = reader.places(JUDGED_SAMPLES)
    total = 0
    for shard, row in places:
        members = reader.catalog.index(shard).members(row)
        captions: list[CaptionFeatures] = []
        if encoders.text is not None and features.empty is not None:
            texts = [text for text, _ in reader.source.files.captions(shard, members, reader.config.caption_weights)]
            lengths = [int((row_L != 0).sum()) for row_L in encoders.text.tokenize(texts)] if texts else []
            width, pooled_P = features.empty.tokens_LT.shape[1], features.empty.pooled_P
            captions = [CaptionFeatures(torch.zeros(length, width, dtype=pooled_P.dtype), pooled_P) for length in lengths]
        size, source = reader.image_size(shard, row), features.source
        latents_VCHW = torch.zeros(source.num_views, *source.latent_shape(size))
        sizes = [len(pack_sample(latents_VCHW, captions, [1.0] * len(captions), original=size, crop=(0, 0), precision=source.precision))]
        sizes += [members[suffix].size for suffix in KEPT_SUFFIXES if suffix in members]
        total += sum(512 + math.ceil(size / 512) * 512 for size in sizes)
    # A tar file ends with two empty blocks and is filled up to 10,240 bytes.
    return sum(math.ceil((samples * total / len(places) + 1024) / 10240) * 10240 for samples in reader.catalog.counts)


def encode_shards(
    folder: Path, numbers: Sequence[int], reader: Reader, encoders: Encoders, features: FeatureSet, *, batch: int, budget: float
) -> None:
    """Write the shards of these numbers. Raises: RuntimeError beyond the budget.

    Batches are of one size, and shards keep the order of their samples: in a window of as many neighbours as fill a batch of each size.
    """
    counts, ends, window = reader.catalog.counts, list(accumulate(reader.catalog.counts)), batch * len(reader.sizes)
    rows = {number: range(ends[number] - counts[number], ends[number]) for number in numbers}
    windows = {number: [several[first : first + window] for first in range(0, len(several), window)] for number, several in rows.items()}
    workers = reader.config.workers
    loader = DataLoader(
        _Pictures(reader.fixed_source),
        batch_size=None,
        sampler=(chunk for several in windows.values() for samples in several for chunk in _chunks(samples, reader, batch=batch)),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    with tqdm(total=sum(map(len, rows.values())), unit="sample", disable=None, desc=f"rank {os.environ['RANK']}") as progress:
        batches = iter(loader)
        for number, several in windows.items():
            write_shard(
                folder / reader.catalog.paths[number].name,
                (sample for samples in several for sample in _encode_window(len(samples), batches, reader, encoders, features, progress)),
            )
            written = sum(path.stat().st_size for path in folder.glob("*.tar"))
            if written > budget:
                raise RuntimeError(f"{folder} has {show_size(written)}, more than --budget; raise it and start again: finished shards are kept")


def _chunks(numbers: range, reader: Reader, *, batch: int) -> Iterator[Chunk]:
    for size, found in reader.fixed_groups(numbers).items():
        for first in range(0, len(found), batch):
            yield Chunk(found[first : first + batch], size)


def _encode_window(
    count: int, batches: Iterator[list[Sample]], reader: Reader, encoders: Encoders, features: FeatureSet, progress: tqdm
) -> Iterator[dict[str, object]]:
    """Members of the next `count` samples in the order of their numbers."""
    encoded: dict[int, dict[str, object]] = {}
    while count:
        samples = next(batches)
        count -= len(samples)
        progress.update(len(samples))
        encoded |= _encode(samples, reader, encoders, features, progress)
    yield from (encoded[number] for number in sorted(encoded))


def _encode(
    samples: Sequence[Sample], reader: Reader, encoders: Encoders, features: FeatureSet, progress: tqdm
) -> Iterator[tuple[int, dict[str, object]]]:
    """Number and members of the samples of one batch; what cannot be used is named and left out."""
    source, good = features.source, {}
    for sample in samples:
        if reason := unusable(sample, source):
            progress.write(f"left out {sample.key}: {reason}", file=sys.stderr)
        elif sample.picture is not None:
            good[sample.index] = sample.picture
    if not good:
        return
    images_BHWC = np.stack([picture.pixels_HWC for picture in good.values()])
    latents_BVCHW = encoders.views(to_unit_range(images_BHWC), source.num_views)
    places = [reader.fixed_source.order.locate(number) for number in good]
    members = [reader.catalog.index(shard).members(row) for shard, row in places]
    read, weights = reader.source.files.captions, reader.config.caption_weights
    texts = [read(shard, spans, weights) if encoders.text else [] for (shard, _), spans in zip(places, members, strict=True)]
    captions = iter(encoders.captions([text for several in texts for text, _ in several], precision=source.precision))
    for (number, picture), (shard, row), spans, several, latents_VCHW in zip(good.items(), places, members, texts, latents_BVCHW, strict=True):
        own, drawn_by = list(itertools.islice(captions, len(several))), [weight for _, weight in several]
        data = pack_sample(latents_VCHW, own, drawn_by, original=picture.original, crop=picture.crop, precision=source.precision)
        kept = {suffix: reader.source.files.read(shard, spans[suffix]) for suffix in KEPT_SUFFIXES if suffix in spans}
        yield number, {"__key__": reader.catalog.index(shard).key(row), FEATURE_SUFFIX: data} | kept


def unusable(sample: Sample, source: FeatureSource) -> str:
    """Why there can be no features of a sample; empty if there can."""
    if sample.failure is not None:
        return sample.failure.reason
    assert sample.picture is not None
    height, width = sample.picture.original
    # Its bucket is chosen by its header; that of its features will be by its pixels. A mark behind the pixels of a PNG can turn it.
    is_fitting = sample.picture.pixels_HWC.shape[:2] == source.image_size_of(sample.picture.original)
    return "" if is_fitting else f"decoded it is {width} x {height}, of another bucket than its header says; write the file anew"


@dataclass(frozen=True)
class _Pictures(Dataset[list[Sample]]):
    """The decoded samples of some numbers in a size."""

    source: SampleSource

    def __getitem__(self, chunk: Chunk) -> list[Sample]:
        return [self.source.load(number, chunk.size) for number in chunk.numbers]


def parse_size(text: str) -> float:
    """Bytes of a number with K, M, G or T behind it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", text.strip().upper())
    if found is None:
        raise ValueError(f"--budget is {text!r}; expected bytes, such as 500G")
    return float(found[1]) * UNITS[found[2]]


def show_size(size: float) -> str:
    unit = max((unit for unit, factor in UNITS.items() if factor <= max(1, size)), key=UNITS.__getitem__)
    return f"{size / UNITS[unit]:.3g} {unit}B"


if __name__ == "__main__":
    sys.exit(main())
