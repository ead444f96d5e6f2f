"""RUN/metrics.jsonl: one JSON object a logged step."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self  # Any: JSON objects as they were read

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.telemetry.appended_file import AppendedFile
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

MetricValue = float | list[float]


class MetricsWriter:
    """Appends lines to metrics.jsonl, each in the file when `write` returns. For the main rank only.

    A failing write (a full disk) is said once and does not stop the run; its lines are written later.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Continue the file after `resume_step` (0: from the start): later lines are dropped, so that each
        step is there once."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_later_lines(path, resume_step)
        self._file = AppendedFile(path)

    def write(self, step: int, samples: int, metrics: Mapping[str, MetricValue]) -> None:
        """Append `metrics` of this step, and how many samples were seen so far."""
        values = {name: _to_json(value) for name, value in metrics.items()}
        line = json.dumps(
            {"step": step, "samples": samples, "time": round(time.time(), 3), **values}, allow_nan=False
        )
        self._file.write(f"{line}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dictionaries, non-finite numbers as floats again; empty without the file.

    A torn last line (the run is writing, or was killed) is left out; a broken line before it also, with a
    warning.
    """
    if not path.is_file():
        return []
    texts = path.read_bytes().splitlines()
    records = []
    for number, text in enumerate(texts, start=1):
        record = _parse(text)
        if record is not None:
            records.append({name: _from_json(value) for name, value in record.items()})
        elif number < len(texts):
            logger.warning("%s line %d is no JSON object with a step and was left out", path, number)
    return records


def _drop_later_lines(path: Path, resume_step: int) -> None:
    if not path.is_file():
        return
    texts = path.read_bytes().splitlines(keepends=True)
    records = [_parse(text) for text in texts]
    pairs = zip(texts, records, strict=True)
    kept = [
        text.rstrip(b"\r\n") + b"\n"
        for text, record in pairs
        if record is not None and record["step"] <= resume_step
    ]
    if kept == texts:
        return
    replace_file(path, b"".join(kept))
    num_damaged = records.count(None)
    num_later = len(texts) - len(kept) - num_damaged
    if num_later:
        logger.info("%s: dropped %s after step %d", path, counted(num_later, "line"), resume_step)
    if num_damaged:
        logger.warning("%s: dropped %s", path, counted(num_damaged, "damaged line"))


def _parse(text: bytes) -> dict[str, Any] | None:
    """None for a line that is damaged: half of it is missing, or zeros stand in its place after a power
    failure."""
    try:
        record = parse_json(text)
    except ValueError:  # no JSON, no UTF-8, or nested too deep
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _to_json(
    value: MetricValue,
) -> Any:  # JSON has no NaN: the strings "nan", "inf" and "-inf" are what float() reads
    if isinstance(value, list):
        return [_to_json(element) for element in value]
    return value if math.isfinite(value) else str(value)


def _from_json(value: Any) -> Any:  # any JSON value
    if isinstance(value, list):
        return [_from_json(element) for element in value]
    return float(value) if isinstance(value, str) and value in ("nan", "inf", "-inf") else value
