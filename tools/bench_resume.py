"""Times the start of reading deep in an epoch of a large data set: the first global batch at 90 % against
that at sample 0.

    python tools/bench_resume.py --output resume.json

Makes one small shard with its index and links both under many names, so that the data set is real tar files
and little disk. Indexes are there before the clock starts, as in a run that is continued; each start is a
process of its own.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from diffmoe_scale.bench.timing import write_result
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.sidecar import INDEX_SUFFIX

GLOBAL_BATCH = 256


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench_resume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=200, help="shards of the data set")
    parser.add_argument("--samples", type=int, default=10_000, help="samples of each shard")
    parser.add_argument("--shuffle-block", type=int, default=64, help="data.shuffle_block")
    parser.add_argument(
        "--folder", type=Path, help="where to make the data set, and leave it; otherwise a temporary folder"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--start-at", type=float, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.start_at is not None:
        print(json.dumps(time_start(parsed.folder, parsed.start_at, parsed.shuffle_block)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = parsed.folder or Path(temporary)
        make_data_set(folder, shards=parsed.shards, samples=parsed.samples)
        print(f"{parsed.shards * parsed.samples:,} samples in {parsed.shards} shards")
        starts = []
        for share in (0.0, 0.9, 0.0, 0.9):
            command = [
                sys.executable,
                __file__,
                "--folder",
                str(folder),
                "--shuffle-block",
                str(parsed.shuffle_block),
                "--start-at",
                str(share),
            ]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            steps = (
                f"{found['open_s']:.2f} s to open the shards, {found['batch_s']:.2f} s to the "
                f"first {GLOBAL_BATCH} samples"
            )
            print(f"start at {100 * share:3.0f} % of an epoch: {steps}", flush=True)
            starts.append({"start_at": share, **found})
    if parsed.output is not None:
        write_result(
            parsed.output, torch.device("cpu"), num_samples=parsed.shards * parsed.samples, starts=starts
        )
    return 0


def make_data_set(folder: Path, *, shards: int, samples: int) -> None:
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
    batch = next(
        reader.batches(plan, plan.position(step=0, samples=start, by_bucket={}), dp_rank=0, dp_size=1)
    )
    assert batch.indices_B[0] == start and not batch.failures
    return {"open_s": opened - began, "batch_s": time.monotonic() - opened}


def _reader(folder: Path, shuffle_block: int) -> Reader:
    return build_reader(
        DataConfig(shuffle_block=shuffle_block), [f"{folder}/*.tar"], model=ModelConfig(image_size=4), seed=0
    )


if __name__ == "__main__":
    sys.exit(main())
