"""Files by which an operator asks something of a run that goes on."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.cli.command import TRY_AGAIN
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train import run as module
from diffmoe_scale.train.reporter import Reporter
from diffmoe_scale.train.run import train
from diffmoe_scale.train.stop import Stopped
from diffmoe_scale.train.trainer import Training
from tests.ranks import run_on_ranks
from tests.train.runs import text_settings, tiny_config
from tests.train.whole_runs import SETTINGS, read_lines


def train_with_files(context: ParallelContext, settings: list[str]) -> tuple[int, str] | None:
    """RUN/profile is made in step 2, RUN/stop in step 6. The exit code of the stop, and why."""
    config = tiny_config(settings)
    directory = RunDirectory(Path(config.run.directory))
    train_step = module.train_step

    def step_with_files(run: Training, reporter: Reporter) -> None:
        for step, request in ((2, directory.profile_request), (6, directory.stop_request)):
            if run.step == step and context.is_main:
                request.touch()
        train_step(run, reporter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_step", step_with_files)
        try:
            train(config, context, directory)
        except Stopped as stopped:
            return stopped.exit_code, str(stopped).split(";")[0]
    return None


def test_files_ask_for_a_trace_and_for_the_end(tmp_path: Path) -> None:
    settings = [
        *SETTINGS,
        *text_settings(tmp_path),
        f"run.directory={tmp_path / 'run'}",
        "parallel.expert_parallel=2",
        "telemetry.profile_steps=2",
    ]
    expected = (TRY_AGAIN, "the file `stop` in its folder asked for it")
    assert run_on_ranks(train_with_files, 2, settings, expert_parallel=2) == [expected] * 2
    directory = RunDirectory(tmp_path / "run")
    assert [path.name for path in complete_checkpoints(directory.checkpoints)][-1] == "step_00000006"
    assert max(read_lines(tmp_path / "run")) <= 6
    assert not directory.stop_request.exists() and not directory.profile_request.exists()
    (trace,) = directory.traces.iterdir()
    assert trace.name == "step_00000004.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    micro_batches = 2  # of each of the two steps
    times = Counter(event.get("name") for event in events if event.get("cat") == "user_annotation")
    assert {phase: times[phase] for phase in ("data", "transfer", "encode", "forward", "backward")} == {
        phase: 2 * micro_batches for phase in ("data", "transfer", "encode", "forward", "backward")
    }
    assert times["optimizer"] == 2
    assert not directory.stacks(0).parent.exists()
