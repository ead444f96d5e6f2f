"""The start of reading deep in an epoch of a large data set, against a start at its first sample."""

import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from diffmoe_scale.bench.options import ResumeOptions
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.patterns import INDEX_SUFFIX
from diffmoe_scale.words import counted

GLOBAL_BATCH = 256
STARTS = (0.0, 0.9, 0.0, 0.9)
"""Shares of an epoch, in the order in which they are timed."""


def bench_resume(options: ResumeOptions) -> list[dict[str, float]]:
    """Times of each start (`start_at`, `open_s`, `batch_s`), printed as they are found."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_data_set(folder, shards=options.shards, samples=options.samples)
        print(
            f"{counted(options.shards * options.samples, 'sample', ',')} in "
            f"{counted(options.shards, 'shard')}"
        )
        starts = []
        for share in STARTS:
            found = _time_in_new_process(folder, share, options.shuffle_block)
            print(
                f"start at {100 * share:3.0f} % of an epoch: {found['open_s']:.2f} s to open the shards, "
                f"{found['batch_s']:.2f} s to the first {GLOBAL_BATCH} samples",
                flush=True,
            )
            starts.append({"start_at": share, **found})
    return starts


def make_data_set(folder: Path, *, shards: int, samples: int) -> None:
    """Shards of equal samples with their indexes, unless the first is there."""
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "shard-00000.tar"
    if first.exists():
        return
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    with tarfile.open(first, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(samples):
            for suffix, data in (("png", buffer.getvalue()), ("txt", f"caption {number}".encode())):
                header = tarfile.TarInfo(f"{number:08d}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    ShardCatalog([first])  # makes the index
    # A link moves the time of change, not that of modification, which the index knows.
    for number in range(1, shards):
        os.link(first, folder / f"shard-{number:05d}.tar")
        os.link(f"{first}{INDEX_SUFFIX}", folder / f"shard-{number:05d}.tar{INDEX_SUFFIX}")


def time_start(folder: Path, share: float, shuffle_block: int) -> dict[str, float]:
    """Seconds to open the shards, and from there to the first global batch; imports are done before."""
    began = time.monotonic()
    reader = _reader(folder, shuffle_block)
    opened = time.monotonic()
    start = int(share * reader.num_samples)
    plan = reader.plan(global_batch=GLOBAL_BATCH, micro_batch=GLOBAL_BATCH)
    position = plan.position(step=0, samples=start, by_bucket={})
    batch = next(reader.batches(plan, position, dp_rank=0, dp_size=1))
    assert batch.indices_B[0] == start and not batch.failures
    return {"open_s": opened - began, "batch_s": time.monotonic() - opened}


def _time_in_new_process(folder: Path, share: float, shuffle_block: int) -> dict[str, float]:
    """`time_start` in a process that has read nothing yet."""
    # A pool rather than a process: an error comes back with its traceback, and a killed process is one.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(time_start, folder, share, shuffle_block).result()


def _reader(folder: Path, shuffle_block: int) -> Reader:
    config, model = DataConfig(shuffle_block=shuffle_block), ModelConfig(image_size=4)
    return build_reader(config, [f"{folder}/*.tar"], model=model, seed=0)
