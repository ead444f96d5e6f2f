"""Small shards for tests. Sample `row` of shard `number` has the key `NUMBER_ROW`, one colour and, unless
told otherwise, a caption."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.reader import Reader

Members = dict[str, bytes]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def color(number: int, row: int) -> tuple[int, int, int]:
    return (10 + number, row % 256, row // 256)


def make_sample(number: int, row: int) -> Members:
    return {
        "png": encode(Image.new("RGB", (4, 4), color(number, row))),
        "txt": f"caption {number} {row}".encode(),
    }


def write_shard(path: Path, samples: Mapping[str, Members]) -> Path:
    with tarfile.open(path, "w") as archive:
        for key, members in samples.items():
            for suffix, data in members.items():
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return path


def write_shards(
    folder: Path, counts: Sequence[int], *, replaced: Mapping[str, Members] | None = None
) -> list[Path]:
    """One shard for each count; `replaced` gives the members of some keys anew."""
    paths = []
    for number, count in enumerate(counts):
        samples = {f"{number}_{row}": make_sample(number, row) for row in range(count)}
        samples |= {key: members for key, members in (replaced or {}).items() if key in samples}
        paths.append(write_shard(folder / f"shard-{number:03d}.tar", samples))
    return paths


def all_keys(counts: Sequence[int]) -> set[str]:
    """What Batch.keys names, over an epoch."""
    return {
        f"shard-{number:03d}.tar/{number}_{row}"
        for number, count in enumerate(counts)
        for row in range(count)
    }


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def header_offset(path: Path, name: str) -> int:
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset


def pixels_of(batch: Batch) -> Tensor:
    """uint8 [B, H, W, 3] of a batch that was made from pictures."""
    assert batch.pixels_BHWC is not None
    return batch.pixels_BHWC


def read_batches(
    reader: Reader,
    *,
    global_batch: int,
    micro_batch: int,
    start_sample: int = 0,
    dp_rank: int = 0,
    dp_size: int = 1,
) -> Iterator[Batch]:
    """The micro-batches of a rank from a sample number on, of a reader without buckets."""
    plan = reader.plan(global_batch=global_batch, micro_batch=micro_batch)
    return reader.batches(
        plan, plan.position(step=0, samples=start_sample, by_bucket={}), dp_rank=dp_rank, dp_size=dp_size
    )
