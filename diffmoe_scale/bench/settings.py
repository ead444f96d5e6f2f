"""Training steps of one run under several settings, in turns: reading, forward, backward, update and
telemetry, as `pretrain` takes them, on one process."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from diffmoe_scale.bench.telemetry import take_step
from diffmoe_scale.bench.timing import quartiles, ratios, time_interleaved
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import finalize, initialize
from diffmoe_scale.train.setup import set_up


def bench_settings(
    file: Path | None, settings: Sequence[str], contenders: Mapping[str, Sequence[str]], *, rounds: int
) -> tuple[list[dict[str, object]], torch.device]:
    """A row for each of `contenders`, a name and the settings that it has beside `settings`, and the device.
    Runs are in a temporary folder. Once a process.

    Raises: ValueError for settings that do not fit, as `set_up` does.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        configs = {
            name: load_config(
                file, [*settings, *others, f"run.directory={folder}/{number}", "run.steps=1000000"]
            )
            for number, (name, others) in enumerate(contenders.items())
        }
        context = initialize(expert_parallel=1, timeout_s=600)
        stack.callback(finalize)
        steps = {}
        for name, config in configs.items():
            run = set_up(config, context, RunDirectory(Path(config.run.directory)))
            stack.enter_context(run.store)
            steps[name] = partial(take_step, run, stack.enter_context(run.reporter()))
        seconds = time_interleaved(steps, rounds=rounds, device=context.device)
    first = seconds[next(iter(contenders))]
    rows: list[dict[str, object]] = []
    for name, times in seconds.items():
        ms = quartiles([1e3 * second for second in times])
        rows.append(
            {
                "contender": name,
                "ms": ms,
                "images_per_s": 1e3 * configs[name].run.global_batch / ms["median"],
                "over_first": ratios(times, first),
                "first_over": ratios(first, times),
                "settings": " ".join(contenders[name]),
            }
        )
    return rows, context.device
