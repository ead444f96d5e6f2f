"""Readers of small shards of pictures, and what they read."""

import itertools
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from tests.data.samples import Members, read_batches, write_shards

GLOBAL_BATCH, MICRO_BATCH = 8, 2
BROKEN = {"png": b"broken", "txt": b"caption"}


def make_reader(
    folder: Path,
    counts: list[int] | None = None,
    *,
    replaced: dict[str, Members] | None = None,
    num_classes: int = 0,
    **options: Any,
) -> Reader:
    if counts is not None:
        write_shards(folder, counts, replaced=replaced)
    model = ModelConfig(
        image_size=4, conditioning="class" if num_classes else "text", num_classes=num_classes
    )
    return build_reader(
        DataConfig(**({"shuffle_block": 2} | options)), [f"{folder}/*.tar"], model=model, seed=5
    )


def first_batches(
    reader: Reader, number: int, *, start_sample: int = 0, dp_rank: int = 0, dp_size: int = 1
) -> list[Batch]:
    batches = read_batches(
        reader,
        start_sample=start_sample,
        dp_rank=dp_rank,
        dp_size=dp_size,
        global_batch=GLOBAL_BATCH,
        micro_batch=MICRO_BATCH,
    )
    return list(itertools.islice(batches, number))
