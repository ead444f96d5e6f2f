"""Shards of pictures of twelve ratios, or of their features, and what a reader in buckets makes of them."""

import itertools
from pathlib import Path
from typing import Any  # settings of any type

import torch
from PIL import Image

from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import FeatureSet, FeatureSource
from diffmoe_scale.data.order.plan import Position
from diffmoe_scale.data.order.size import ImageBuckets
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.pictures import Size, decode_image, stored_size
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import expand_patterns
from tests.data.samples import Members, encode, pixels_of, write_shards

ASPECTS = (0.5, 0.5625, 0.6667, 0.75, 0.8, 0.9, 1.0, 1.25, 1.3333, 1.5, 1.7778, 2.0)
COUNTS = [11, 3, 17, 29]
GLOBAL_BATCH, MICRO_BATCH = 8, 2
SOURCE = FeatureSource(
    "a", "", channels=1, factor=2, image_size=16, aspects=ASPECTS, step=2, num_views=1, precision="bf16"
)


def picture_members(number: int, row: int) -> Members:
    """An image of one of the twelve ratios, all of about 1024 pixels."""
    aspect = ASPECTS[(5 * number + row) % 12]
    size = (round(32 * aspect**0.5), round(32 / aspect**0.5))
    return {"png": encode(Image.new("RGB", size, (number, row, 0))), "txt": b"caption"}


def write_mixed_shards(folder: Path) -> list[Path]:
    return write_shards(
        folder,
        COUNTS,
        replaced={
            f"{n}_{row}": picture_members(n, row) for n, count in enumerate(COUNTS) for row in range(count)
        },
    )


def write_feature_shards(folder: Path, *, wrong: str = "") -> list[Path]:
    """The same samples as features; those of the key `wrong` lie on their side."""
    replaced = {}
    for key in (f"{n}_{row}" for n, count in enumerate(COUNTS) for row in range(count)):
        data = picture_members(*map(int, key.split("_")))["png"]
        picture = decode_image(data, size=SOURCE.image_size_of(stored_size(data)), background=(0, 0, 0))
        height, width, _ = picture.pixels_HWC.shape
        latents_VCHW = torch.zeros(
            1, *SOURCE.latent_shape(Size(width, height) if key == wrong else Size(height, width))
        )
        member = pack_sample(
            latents_VCHW, [], [], original=picture.original, crop=picture.crop, precision="bf16"
        )
        replaced[key] = {"safetensors": member, "txt": b"caption"}
    FeatureSet(SOURCE).save(folder)
    return write_shards(folder, COUNTS, replaced=replaced)


def bucket_reader(folder: Path, **data: Any) -> Reader:
    buckets = BucketConfig(enabled=True, aspects=ASPECTS, step=2)
    return build_reader(
        DataConfig(**({"shuffle_block": 2} | data)),
        [f"{folder}/*.tar"],
        model=ModelConfig(image_size=16),
        seed=5,
        buckets=buckets,
    )


def read_steps(
    reader: Reader, number: int, *, start: Position | None = None, dp_size: int = 1
) -> list[list[Batch]]:
    """The batches of all ranks, step by step, in the order of their places."""
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    start = start or plan.position(step=0, samples=0, by_bucket={})
    each = plan.micro_batches // dp_size
    ranks = [
        list(itertools.islice(reader.batches(plan, start, dp_rank=rank, dp_size=dp_size), number * each))
        for rank in range(dp_size)
    ]
    return [
        [batches[step * each + turn] for turn in range(each) for batches in ranks] for step in range(number)
    ]


def content_of(steps: list[list[Batch]]) -> list[list[tuple[int, str, str, bytes]]]:
    return [
        [
            (index, key, caption, image.numpy().tobytes())
            for batch in step
            for index, key, caption, image in zip(
                batch.indices_B.tolist(),
                batch.keys,
                batch.captions,
                to_unit_range(pixels_of(batch)),
                strict=True,
            )
        ]
        for step in steps
    ]


def find_buckets(folder: Path) -> ImageBuckets:
    catalog = ShardCatalog(expand_patterns([f"{folder}/*.tar*"]))
    return ImageBuckets(catalog, ASPECTS, ratios=ASPECTS)
