"""Contenders timed against each other, and what a result must say beside its figures."""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from diffmoe_scale.json_text import parse_json

ENVIRONMENT = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "MALLOC_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "CUDA_",
    "NVTE_",
    "PYTORCH_",
    "TORCH_",
)
"""Prefixes of environment variables that change speed or memory."""
PACKAGES = ("megatron-core", "deepspeed")
MIB = 2**20


def time_interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: torch.device,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call. A round calls every contender once, beginning with another each time, so that
    what disturbs the machine disturbs all of them and ratios within a round stay comparable. One round of
    warm-up is not counted, nor is `before`, which precedes each call."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-1, rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            before()
            _wait(device)
            start = time.perf_counter()
            contenders[name]()
            _wait(device)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memory(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """`peak_mib` beyond what was allocated before the call, and `largest_mib` of its allocations, from
    torch's allocator."""
    device_type = {"cpu": 0, "cuda": 1}[device.type]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device_type
    with profile(activities=activities, profile_memory=True) as profiler:
        call()
        _wait(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = parse_json(path.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted(
        (event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]
    )
    allocated = peak = largest = 0
    for event in events:
        if event["args"]["Device Type"] == device_type:
            allocated += event["args"]["Bytes"]
            peak, largest = max(peak, allocated), max(largest, event["args"]["Bytes"])
    return {"peak_mib": peak / MIB, "largest_mib": largest / MIB}


def quartiles(values: list[float]) -> dict[str, float]:
    """`q1`, `median` and `q3`; one value is all three."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"q1": q1, "median": median, "q3": q3}


def ratios(seconds: list[float], baseline: list[float]) -> dict[str, float]:
    """Quartiles of the ratio within a round."""
    return quartiles([a / b for a, b in zip(seconds, baseline, strict=True)])


def describe_measurement(device: torch.device) -> dict[str, object]:
    """Hardware, versions, command, date, threads and environment: what a figure means nothing without."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.argv],
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in PACKAGES},
        },
    }


def format_table(rows: list[dict[str, object]]) -> str:
    """Aligned columns under the names of the first row's fields; nested quartiles are written `median [q1 ..
    q3]`."""
    lines = [list(rows[0]), *([_format_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def report(
    table: list[dict[str, object]], device: torch.device, output: Path | None, **result: object
) -> None:
    """Print the table, and write it with `result` to `output` if there is one."""
    print(format_table(table))
    if output is not None:
        write_result(output, device, **result, table=table)


def write_result(path: Path, device: torch.device, **result: object) -> None:
    """One JSON file: the run's description, then `result`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(describe_measurement(device) | result, indent=1) + "\n", encoding="utf-8")


def _format_cell(value: object) -> str:
    match value:
        case {"median": float(median), "q1": float(q1), "q3": float(q3)}:
            return f"{median:.3f} [{q1:.3f} .. {q3:.3f}]"
        case float():
            return f"{value:,.1f}"
        case _:
            return str(value)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
