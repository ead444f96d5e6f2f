import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.parts import GRADIENT_PARTS
from diffmoe_scale.pretrain import main
from diffmoe_scale.telemetry.metrics import read_metrics
from diffmoe_scale.telemetry.prometheus import gauge_name, split_block
from diffmoe_scale.train.run import train
from diffmoe_scale.train.stop import Stopped
from tests.dashboard import missing_gauges
from tests.ranks import run_alone, run_on_ranks
from tests.train.runs import TINY, text_settings, tiny_config
from tests.train.whole_runs import SETTINGS, read_lines, train_runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that share their experts, in one start: eight steps, the same in two parts, the same
    watched."""
    folder = tmp_path_factory.mktemp("pairs")
    common = [*text_settings(folder), *SETTINGS]
    looks = ["telemetry.validate_every=2", "telemetry.sample_every=3", "sampling.steps=2"]
    runs = []
    for precision in ("fp32", "bf16"):
        for name, steps in (("whole", 8), ("parts", 4), ("parts", 8)):
            runs.append(
                [
                    *common,
                    f"run.directory={folder / precision / name}",
                    f"run.steps={steps}",
                    f"model.precision={precision}",
                ]
            )
    train_runs(
        (2, 2), *runs, [*common, f"run.directory={folder / 'fp32' / 'watched'}", "run.steps=8", *looks]
    )
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_in_two_parts_repeats_one_without_a_break_to_the_bit(pairs: Path, precision: str) -> None:
    whole = read_lines(pairs / precision / "whole")
    assert list(whole) == list(range(1, 9)) and read_lines(pairs / precision / "parts") == whole


def test_validation_and_pictures_change_no_later_step(pairs: Path) -> None:
    watched = read_lines(pairs / "fp32" / "watched")
    losses = {
        step: {name: line.pop(name) for name in list(line) if "validation" in name}
        for step, line in watched.items()
        if "loss/validation" in line
    }
    assert list(losses) == [2, 4, 6, 8] and watched == read_lines(pairs / "fp32" / "whole")
    pictures = sorted(path.name for path in (pairs / "fp32" / "watched" / "samples").iterdir())
    assert pictures == ["step_00000003.png", "step_00000006.png", "step_00000008.png"]


def test_every_panel_of_the_dashboard_shows_figures_that_a_run_logs(pairs: Path) -> None:
    logged = {name for line in read_metrics(pairs / "fp32" / "watched" / "metrics.jsonl") for name in line}
    # A GPU of a known model, and as many steps as `defence.window` has.
    logged |= {"throughput/mfu", "defence/z_score"}
    assert missing_gauges({gauge_name(split_block(name)[0]) for name in logged}) == []


def train_with_stops(context: ParallelContext, settings: list[str], stops: int) -> None:
    """The run is asked to end after the first step of each of `stops` starts, then trains to its end."""
    for number in range(stops + 1):
        config = tiny_config([*settings, "parallel.expert_parallel=2"])
        directory = RunDirectory(Path(config.run.directory))
        directory.path.mkdir(parents=True, exist_ok=True)
        if number == stops:
            train(config, context, directory)
            continue
        directory.stop_request.touch()
        with pytest.raises(Stopped):
            train(config, context, directory)


def test_lines_of_a_run_that_was_stopped_between_them_are_those_of_one_without_a_break(
    settings: list[str], tmp_path: Path
) -> None:
    settings = [*settings, "run.steps=5", "telemetry.log_every=4"]
    for name, stops in (("whole", 0), ("parts", 3)):
        own = [*settings, f"run.directory={tmp_path / name}"]
        run_on_ranks(train_with_stops, 2, own, stops, expert_parallel=2)
    for line in read_metrics(tmp_path / "parts" / "metrics.jsonl"):
        # Of the line's last step; the phases are means over its steps.
        in_one_step = line["time/forward_s"] + line["time/backward_s"]
        assert 0 < line["time/all_to_all_s"] < 5 * in_one_step
        squares = sum(
            line[f"optimizer/gradient_norm/{part}"] ** 2 for part in GRADIENT_PARTS if part != "predictor"
        )
        if line["step"] == 5:  # of one step alone
            assert squares == pytest.approx(line["optimizer/gradient_norm"] ** 2, rel=1e-5)
    whole = read_lines(tmp_path / "whole")
    assert list(whole) == [4, 5] and read_lines(tmp_path / "parts") == whole


def test_killed_run_goes_on_by_the_same_command_as_if_nothing_had_happened(
    settings: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    settings = [*settings, "run.steps=40", "optimizer.decay_fraction=0.5", "checkpoint.every=8"]
    command = [sys.executable, "-m", "diffmoe_scale.pretrain", "--config", str(file), *TINY, *settings]
    file.write_text("{}\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while len(read_metrics(metrics)) < 10 or not complete_checkpoints(tmp_path / "run" / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = max(read_lines(tmp_path / "run"))
    assert 10 <= killed_at < 40

    assert run_alone(main, command[3:]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    continued_at = int(log.split("continues from ")[1].split("(step ")[1].split(",")[0])
    assert 8 <= continued_at <= killed_at
    train_runs((1, 1), [*settings, f"run.directory={tmp_path / 'whole'}"])
    assert list(read_lines(tmp_path / "run")) == list(range(1, 41)) and read_lines(
        tmp_path / "run"
    ) == read_lines(tmp_path / "whole")

    # A third time there is nothing to do.
    assert run_alone(main, command[3:]) == 0
    assert (
        f"{tmp_path / 'run'} has its 40 steps (run.steps) already; nothing to train"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_damaged_checkpoint_costs_the_steps_since_the_one_before(settings: list[str], tmp_path: Path) -> None:
    settings = [*settings, "run.steps=8"]
    train_runs((1, 1), settings)
    before = read_lines(tmp_path / "run")
    data = tmp_path / "run" / "checkpoints" / "step_00000008" / "__0_0.distcp"
    whole_size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-100])
    train_runs((1, 1), settings)
    assert read_lines(tmp_path / "run") == before and data.stat().st_size == whole_size
