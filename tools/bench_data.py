"""Samples a second and CPU time a sample of reading: pictures (decode, crop) and features, against webdataset
and torchvision on the same files.

    python tools/bench_data.py --output data.json

One core each, in turns; medians over the rounds. A ratio is of CPU time, pair by pair within a round.
"""

import argparse
import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import webdataset
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from diffmoe_scale.bench.timing import ratios, write_result
from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import (
    SampleFeatures,
    pack_sample,
    stack_captions,
    stack_latents,
    unpack_sample,
)
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.pictures import Size, decode_image
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES
from diffmoe_scale.data.shards.patterns import expand_patterns
from diffmoe_scale.prepare.publish import write_shard

SHARDS = 4
LATENT_CHANNELS, LATENT_FACTOR, IMAGE_SIZE = 4, 8, 256
CAPTION_TOKENS, TEXT_WIDTH = 20, 768
OURS = "this reader"
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Figure:
    """Medians over the rounds of one contender."""

    samples_per_s: float
    samples_per_cpu_s: float
    ratio: dict[str, float]
    """Quartiles over the rounds of this reader's CPU speed over the contender's, pair by pair."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench_data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--pictures",
        default="",
        help="shards of pictures: a path, glob or brace list (default: makes some of JPEG, 256 x 256)",
    )
    add(
        "--features",
        default="",
        help="shards of tools/cache_features.py (default: makes some: latents 4 x 32 x 32, text 20 x 768)",
    )
    add("--image-size", type=int, default=256, help="width and height of decoded pictures (default: 256)")
    add("--samples", type=int, default=1024, help="samples a round (default: 1024)")
    add("--batch", type=int, default=64, help="samples a batch (default: 64)")
    add("--rounds", type=int, default=7, help="rounds (default: 7)")
    add("--output", type=Path, help="JSON file")
    parsed = parser.parse_args(arguments)
    try:
        for name in ("image_size", "samples", "batch", "rounds"):
            require(
                getattr(parsed, name) >= 1, f"--{name.replace('_', '-')}", getattr(parsed, name), "at least 1"
            )
        with tempfile.TemporaryDirectory() as folder:
            report = bench(parsed, Path(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if parsed.output is not None:
        write_result(parsed.output, torch.device("cpu"), **report)
    return 0


def bench(parsed: argparse.Namespace, work: Path) -> dict[str, object]:
    torch.set_num_threads(1)
    pictures, features = parsed.pictures, parsed.features
    if not pictures:
        pictures = make_pictures(work / "pictures", count=parsed.samples, size=256)
    if not features:
        features = make_features(work / "features", count=parsed.samples)
    report: dict[str, object] = {}
    print(f"{'':<12}{'':<14}{'samples/s':>12}{'per CPU s':>12}{'CPU us/sample':>15}{'ratio':>8}")
    for title, contenders in (
        (
            "pictures",
            picture_contenders(pictures, work / "folders", image_size=parsed.image_size, batch=parsed.batch),
        ),
        ("features", feature_contenders(features, batch=parsed.batch)),
    ):
        figures = race(
            contenders, batches=-(-parsed.samples // parsed.batch), batch=parsed.batch, rounds=parsed.rounds
        )
        report[title] = {name: vars(figure) for name, figure in figures.items()}
        for name, figure in figures.items():
            speed = figure.samples_per_cpu_s
            print(
                f"{title:<12}{name:<14}{figure.samples_per_s:>12,.0f}{speed:>12,.0f}"
                f"{1e6 / speed:>15,.1f}{figure.ratio['median']:>8.2f}"
            )
    print(f"ratio: CPU speed of {OURS} over that of the line")
    return report


def race(
    contenders: dict[str, Iterator[object]], *, batches: int, batch: int, rounds: int
) -> dict[str, Figure]:
    """Each contender reads `batches` batches a round, in turns; who begins changes."""
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    cpus: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        next(contender)  # opens files
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(batches):
                next(contenders[name])
            walls[name].append((time.perf_counter() - wall) / (batches * batch))
            cpus[name].append((time.process_time() - cpu) / (batches * batch))
    return {
        name: Figure(
            samples_per_s=1 / statistics.median(walls[name]),
            samples_per_cpu_s=1 / statistics.median(cpus[name]),
            ratio=ratios(cpus[name], cpus[OURS]),
        )
        for name in names
    }


def picture_contenders(
    shards: str, folders: Path, *, image_size: int, batch: int
) -> dict[str, Iterator[object]]:
    """Endless batches of pictures with captions, all by the same decoding and cropping."""

    def decode(data: bytes) -> np.ndarray:
        return decode_image(data, size=Size(image_size, image_size), background=WHITE).pixels_HWC

    def picture(sample: dict[str, bytes]) -> tuple[np.ndarray, str]:
        return decode(next(sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample)), sample.get(
            "txt", b""
        ).decode()

    def collate(samples: list[tuple[np.ndarray, object]]) -> tuple[torch.Tensor, list[object]]:
        return torch.from_numpy(np.stack([sample[0] for sample in samples])), [
            sample[1] for sample in samples
        ]

    unpack(shards, folders)
    dataset = ImageFolder(str(folders), loader=lambda path: decode(Path(path).read_bytes()))
    return {
        OURS: our_batches(shards, image_size=image_size, batch=batch),
        "webdataset": plain_webdataset(shards, picture, collate, batch=batch),
        "ImageFolder": cycle_batches(
            lambda: DataLoader(dataset, batch_size=batch, shuffle=True, collate_fn=collate, drop_last=True)
        ),
    }


def feature_contenders(shards: str, *, batch: int) -> dict[str, Iterator[object]]:
    """Endless batches of latents and padded text features: webdataset with safetensors' and torch's
    functions, and with this reader's."""
    features = find_feature_set(expand_patterns([shards]))
    if features is None:
        raise ValueError(f"--features is {shards!r}; expected shards of tools/cache_features.py")
    edge = features.source.image_size
    size = Size(edge, edge)

    def load(sample: dict[str, bytes]) -> dict[str, torch.Tensor]:
        return safetensors.torch.load(sample[FEATURE_SUFFIX])

    def collate(samples: list[dict[str, torch.Tensor]]) -> object:
        latents_BCHW = torch.stack([sample["latents_VCHW"][0] for sample in samples]).bfloat16()
        if features.empty is None:
            return latents_BCHW
        firsts = [sample["tokens_LT"][: int(sample["lengths_K"][0])].bfloat16() for sample in samples]
        lengths_B = torch.tensor([len(first) for first in firsts])
        tokens_BLT = pad_sequence(firsts, batch_first=True)
        mask_BL = torch.arange(tokens_BLT.shape[1]) < lengths_B[:, None]
        return (
            latents_BCHW,
            tokens_BLT,
            mask_BL,
            torch.stack([sample["pooled_KP"][0] for sample in samples]).bfloat16(),
        )

    def load_fast(sample: dict[str, bytes]) -> SampleFeatures:
        return unpack_sample(sample[FEATURE_SUFFIX], features.source, size)

    def collate_fast(samples: list[SampleFeatures]) -> object:
        precision = features.source.precision
        latents_BCHW = stack_latents(
            [sample.latents(0).bits_CHW for sample in samples],
            features.source.latent_shape(size),
            precision=precision,
        )
        return latents_BCHW, None if features.empty is None else stack_captions(
            [sample.caption(0) for sample in samples], precision=precision
        )

    return {
        OURS: our_batches(shards, image_size=edge, batch=batch),
        "webdataset": plain_webdataset(shards, load, collate, batch=batch),
        "its tar alone": plain_webdataset(shards, load_fast, collate_fast, batch=batch),
    }


def our_batches(shards: str, *, image_size: int, batch: int) -> Iterator[object]:
    config, model = DataConfig(caption_dropout=0.0), ModelConfig(image_size=image_size)
    reader = build_reader(config, [shards], model=model, seed=0)
    plan = reader.plan(global_batch=batch, micro_batch=batch)
    return reader.batches(plan, plan.position(step=0, samples=0, by_bucket={}), dp_rank=0, dp_size=1)


def plain_webdataset(
    shards: str, load: Callable[..., object], collate: Callable[..., object], *, batch: int
) -> Iterator[object]:
    """With a small shuffle buffer, full before the first round: its training order, as this reader has its
    own."""
    urls = [str(path) for path in expand_patterns([shards])]
    samples = webdataset.WebDataset(urls, shardshuffle=False).shuffle(batch, initial=batch).map(load)
    return iter(samples.batched(batch, collation_fn=collate, partial=False).repeat())


def cycle_batches(make: Callable[[], DataLoader[object]]) -> Iterator[object]:
    return (batch for loader in cycle([make]) for batch in loader())


def unpack(shards: str, folder: Path) -> None:
    """The pictures of shards as files in FOLDER/SHARD, as torchvision reads them."""
    for path in expand_patterns([shards]):
        (folder / path.stem).mkdir(parents=True)
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and (
                    file := archive.extractfile(member)
                ):
                    (folder / path.stem / member.name.replace("/", "_")).write_bytes(file.read())


def make_pictures(folder: Path, *, count: int, size: int) -> str:
    """Shards of JPEG files about as large and as hard to decode as photographs."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for shard in range(SHARDS):
        samples = []
        for row in range(-(-count // SHARDS)):
            coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
            noise = random.integers(-12, 13, (size, size, 3))
            pixels = (
                (np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int) + noise)
                .clip(0, 255)
                .astype(np.uint8)
            )
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            samples.append(
                {
                    "__key__": f"{shard}_{row:06d}",
                    "jpg": buffer.getvalue(),
                    "txt": f"caption {row} of shard {shard}".encode(),
                }
            )
        write_shard(folder / f"train-{shard:06d}.tar", samples)
    return f"{folder}/train-*.tar"


def make_features(folder: Path, *, count: int) -> str:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    empty = CaptionFeatures(draw(2, TEXT_WIDTH).bfloat16(), draw(TEXT_WIDTH).bfloat16())
    source = FeatureSource(
        autoencoder="made",
        text="made",
        channels=LATENT_CHANNELS,
        factor=LATENT_FACTOR,
        image_size=IMAGE_SIZE,
        aspects=(),
        step=0,
        num_views=1,
        precision="bf16",
    )
    FeatureSet(source, empty).save(folder)
    size = Size(IMAGE_SIZE, IMAGE_SIZE)

    def member() -> bytes:
        caption = CaptionFeatures(draw(CAPTION_TOKENS, TEXT_WIDTH), draw(TEXT_WIDTH))
        return pack_sample(
            draw(1, *source.latent_shape(size)),
            [caption],
            [1.0],
            original=size,
            crop=(0, 0),
            precision=source.precision,
        )

    for shard in range(SHARDS):
        write_shard(
            folder / f"train-{shard:06d}.tar",
            [
                {
                    "__key__": f"{shard}_{row:06d}",
                    FEATURE_SUFFIX: member(),
                    "txt": f"caption {row} of shard {shard}".encode(),
                }
                for row in range(-(-count // SHARDS))
            ],
        )
    return f"{folder}/train-*.tar"


if __name__ == "__main__":
    sys.exit(main())
