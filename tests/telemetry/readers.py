"""What trackers wrote, read back."""

import struct
from pathlib import Path
from typing import Any  # what the two packages read back is untyped


def read_tensorboard(run_directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(
        str(run_directory / "tensorboard"), size_guidance={"images": 0, "scalars": 0}
    ).Reload()


def read_wandb(file: Path) -> list[Any]:
    """The records of an offline run: pieces of at most a block of 32 KiB, each after a checksum, its length
    and its kind."""
    # Made by protobuf while running.
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    data, place, record, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<4xHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(Record.FromString(record))
            record = b""
        if place % 2**15 > 2**15 - 7:  # no room for another piece in this block
            place += -place % 2**15
    return records
