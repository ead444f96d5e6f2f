"""Computes the latents and text features of shards once, before training: shards of KEY.safetensors beside
captions and labels."""

import argparse
import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from diffmoe_scale.config.check import require
from diffmoe_scale.config.load import describe_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.features.source import (
    PRECISIONS,
    FeatureSet,
    FeatureSource,
    bucket_fields,
    check_shapes,
)
from diffmoe_scale.data.reading.reader import build_reader
from diffmoe_scale.encoders.autoencoder.build import build_autoencoder
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.prepare.encoding import Encoders, FeatureWriter
from diffmoe_scale.prepare.publish import begin, publish, run_tool
from diffmoe_scale.telemetry.log import silence_packages

MANIFEST = "features.json"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cache_features",
        description=f"{__doc__} Started by torchrun or srun, each rank takes its share of the shards; the same command again goes on "
        "where it was stopped. Latents are the autoencoder's mean, as in training from pictures.",
        epilog="settings (section.key=default):" + describe_config(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        required=True,
        help="YAML file of the training; its autoencoder, text, model, data and buckets settings count",
    )
    add(
        "--input",
        action="append",
        required=True,
        help="shards of pictures: a path, glob or brace list; may be given several times",
    )
    add("--output", type=Path, required=True, help="folder to make, with shards of the same names")
    add(
        "--precision",
        choices=tuple(PRECISIONS),
        default="bf16",
        help="stored numbers (default: bf16; fp8 is e4m3, half the size)",
    )
    add("--batch", type=int, default=32, help="pictures encoded at once (default: 32)")
    add(
        "--budget",
        default="",
        help="largest size of the output in bytes, such as 500G; more is refused before the start (default: the free space)",
    )
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
        config.autoencoder.kind != "pixels",
        "autoencoder.kind",
        "pixels",
        "'kl': pixels need no cache; to shrink them, see prepare_shards --resize",
    )
    budget = parse_size(parsed.budget) if parsed.budget else math.inf
    reader = build_reader(config.data, parsed.input, model=config.model, seed=0, buckets=config.buckets)
    require(
        reader.source.features is None,
        "--input",
        parsed.input,
        "shards of pictures; these hold features already",
    )
    names = [path.name for path in reader.catalog.paths]
    require(
        len(set(names)) == len(names),
        "--input",
        parsed.input,
        "shards of different names; cache folder by folder",
    )
    encoders = build_encoders(config, device=choose_device(local_rank))
    feature_set = describe_features(config, encoders, precision=parsed.precision)
    writer = FeatureWriter(reader, encoders, feature_set, batch=parsed.batch)
    estimate = writer.estimate_size()
    if rank == 0:
        print(
            f"{reader.num_samples} samples in {len(names)} shards: about {show_size(estimate)} ({estimate / reader.num_samples:,.0f} bytes a sample)"
        )
    if estimate > budget:
        raise ValueError(
            f"--budget is {parsed.budget}, less than the {show_size(estimate)} needed; raise it, give fewer shards or --precision fp8"
        )
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
        raise ValueError(
            f"{parsed.output} needs {show_size(remaining)} more, but its disk has {show_size(free)} left"
        )
    feature_set.save(folder)
    mine = numbers[rank :: int(os.environ["WORLD_SIZE"])]
    for _ in writer.write(folder, [number for number in mine if number in set(missing)]):
        written = size_of(folder)
        if written > budget:
            raise RuntimeError(
                f"{folder} has {show_size(written)}, more than --budget; raise it and start again: finished shards are kept"
            )
    if all((folder / names[number]).is_file() for number in numbers):
        publish(parsed.output)
        print(f"{parsed.output}: {show_size(size_of(parsed.output))} (estimated {show_size(estimate)})")
    return 0


def build_encoders(config: Config, *, device: torch.device) -> Encoders:
    text = None
    if config.model.conditioning == "text" and config.text.kind == "open_clip":
        text = build_text_encoder(
            config.text, tokenizer_path=RunDirectory(Path(config.run.directory)).tokenizer
        ).to(device)
    elif config.model.conditioning == "text" and os.environ["RANK"] == "0":
        print(
            "text.kind is 'sentencepiece', an encoder that is trained along: captions are kept and their features are not cached"
        )
    return Encoders(build_autoencoder(config.autoencoder, device=device), text, device)


def describe_features(config: Config, encoders: Encoders, *, precision: str) -> FeatureSet:
    size, buckets, factor = config.model.image_size, config.buckets, encoders.autoencoder.factor
    require(
        size % factor == 0,
        "model.image_size",
        size,
        f"a multiple of {factor}, by which the autoencoder shrinks images",
    )
    multiple = factor * config.model.patch_size
    is_whole = not buckets.enabled or buckets.step % multiple == 0
    require(
        is_whole,
        "buckets.step",
        buckets.step,
        f"a multiple of {multiple} (model.patch_size times the autoencoder's factor)",
    )
    aspects, step = bucket_fields(buckets)
    source = FeatureSource(
        autoencoder=encoders.autoencoder.fingerprint(),
        text=encoders.text.fingerprint() if encoders.text else "",
        channels=encoders.autoencoder.channels,
        factor=factor,
        image_size=size,
        aspects=aspects,
        step=step,
        num_views=2 if config.data.horizontal_flip else 1,
        precision=precision,
    )
    check_shapes(source, image_size=size, buckets=buckets)
    return FeatureSet(source, next(iter(encoders.captions([""], precision=precision)), None))


def size_of(folder: Path) -> int:
    """Bytes of its shards."""
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


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
    run_tool(main)
