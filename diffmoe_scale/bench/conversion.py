"""Time and memory of the conversion of a run to safetensors files, beside the speed at which its disk copies
files."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from diffmoe_scale.bench.options import ConversionOptions
from diffmoe_scale.bench.work_folder import work_folder
from diffmoe_scale.checkpoint.manifest import (
    Manifest,
    describe_file,
    package_versions,
    write_manifest,
)
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.convert.megatron import write_pieces
from diffmoe_scale.convert.verify import build_meta
from diffmoe_scale.nn.generator import named_generator

Answer = TypeVar("Answer")
STD = 0.02
"""Of the random weights."""
THRESHOLD = 0.6
"""By which random predictors give a token about one of 16 experts, as training does."""
UPDATES = 100_000
"""Of thresholds: they count as they are."""
CHUNK = 2**24
KIB, GB = 2**10, 10**9


@dataclass(frozen=True)
class Conversions:
    """What was measured. A conversion is compared with a copy by the bytes of its source alone, although it
    writes, too."""

    num_parameters: int
    source_bytes: int
    target_bytes: int
    copied_bytes: int
    rows: list[dict[str, object]]
    """By task: seconds, and of a CPU, which do not depend on what else the machine does; GB a second of the
    source, over that of the copy, peak GB of its process."""


def bench_conversion(options: ConversionOptions) -> Conversions:
    """Random averaged weights as a run directory; a copy of its files; the conversion to bf16, without and
    with the comparison of outputs, a process each. All are removed again."""
    config = load_config(options.config, options.settings)
    with work_folder(options.folder, "bench_conversion_") as folder:
        make_run(folder / "run", config)
        files = [path for path in sorted((folder / "run").rglob("*")) if path.is_file()]
        forget(files)
        busy = time.process_time()
        seconds, copied = time_copy(files, folder / "copy", round(options.copy_gib * 2**30))
        busy = time.process_time() - busy
        rows: list[dict[str, object]] = [_row("copy", seconds, busy, copied / seconds, 1.0, 0)]
        size = sum(path.stat().st_size for path in files)
        target = 0
        for task, is_verified in (("convert", False), ("convert and compare", True)):
            forget(files)
            what = Options(weights="ema", dtype="bf16", shard_gib=options.shard_gib, is_verified=is_verified)
            taken, busy, peak = _in_process(
                _convert, folder / "run", folder / "target", what, options.threads
            )
            rows.append(_row(task, taken, busy, size / taken, size / taken * seconds / copied, peak))
            target = sum(path.stat().st_size for path in (folder / "target").iterdir())
            shutil.rmtree(folder / "target")
    parameters = build_meta(config, {}).canonical_parameters().values()
    count = sum(parameter.numel() for parameter in parameters)
    return Conversions(count, size, target, copied, rows)


def _row(task: str, seconds: float, busy: float, speed: float, share: float, peak: int) -> dict[str, object]:
    return {
        "task": task,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "gb_a_second": round(speed / GB, 3),
        "of_copy": round(share, 3),
        "peak_gb": round(peak / GB, 3),
    }


def make_run(folder: Path, config: Config) -> None:
    """A run directory with one checkpoint of random averaged weights, written a tensor at a time."""
    directory = RunDirectory(folder)
    checkpoint = directory.checkpoints / "step_00000001"
    checkpoint.mkdir(parents=True)
    config = replace(config, run=replace(config.run, directory=str(folder)))
    directory.config.write_text(dump_config(config), encoding="utf-8")
    tensors = random_state(config)
    flat = {name: tensor.view(torch.Size(tensor.shape).numel()) for name, tensor in tensors.items()}
    write_pieces(checkpoint, {name: {-1: tensor} for name, tensor in flat.items()})
    manifest = Manifest(
        step=1,
        samples=1,
        optimizer_steps=1,
        settings=model_settings(config, tokenizer=directory.tokenizer, frozen={}),
        layout={"world_size": 1},
        shapes={name: list(tensor.shape) for name, tensor in tensors.items()},
        files={path.name: describe_file(path) for path in checkpoint.iterdir()},
        versions=package_versions(),
    )
    write_manifest(checkpoint, manifest)


def random_state(config: Config) -> dict[str, LazyTensor]:
    """By `family/name`, drawn when they are read."""
    denoiser = build_meta(config, {})
    state = {
        f"ema/{name}": _drawn(name, tuple(parameter.shape))
        for name, parameter in denoiser.canonical_parameters().items()
    }
    for name, buffer in denoiser.canonical_buffers().items():
        value = UPDATES if buffer.dtype == torch.int64 else THRESHOLD
        state[f"buffer/{name}"] = LazyTensor.of(torch.full(buffer.shape, value, dtype=buffer.dtype))
    return state


def _drawn(name: str, shape: tuple[int, ...]) -> LazyTensor:
    def read() -> torch.Tensor:
        return STD * torch.randn(shape, generator=named_generator(0, name))

    return LazyTensor(shape, torch.float32, read)


def forget(files: list[Path]) -> None:
    """Take files out of the memory in which the system keeps what was read and written."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_copy(files: list[Path], target: Path, most: int) -> tuple[float, int]:
    """Seconds in which the bytes of files, `most` of them, are copied into one and on disk; their number."""
    start, copied = time.perf_counter(), 0
    with target.open("xb") as out:
        for chunk in _chunks(files):
            copied += out.write(chunk)
            if copied >= most:
                break
        out.flush()
        os.fsync(out.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds, copied


def _chunks(files: list[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as file:
            yield from _pieces(file)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _convert(source: Path, target: Path, options: Options, threads: int) -> tuple[float, float, int]:
    """Seconds, seconds of a CPU, and the peak of this process's memory in bytes."""
    torch.set_num_threads(threads)
    start, busy = time.perf_counter(), time.process_time()
    convert(source, target, options)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    # ru_maxrss would be that of the process that started this one, if that is larger.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return seconds, busy, int(found[1]) * KIB


def _in_process(call: Callable[..., Answer], *given: object) -> Answer:
    """The call in a process of its own, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(call, *given).result()
