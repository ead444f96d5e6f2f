"""The whole command on a tiny trained run."""

from pathlib import Path

from diffmoe_scale.evaluation.sweep_results import read_sweep
from tests.ranks import run_alone, run_on_ranks
from tests.sampling.test_calibration import train_briefly
from tests.train.runs import text_settings
from tools import sweep_capacity

SMALL = ["sampling.steps=2", "sampling.guidance=2.0", "sampling.calibration_images=8"]
OPTIONS = ["--prompts", "2", "--pictures", "4", "--rounds", "2", "--timed", "2"]


def sweep(run: Path) -> list[int]:
    command = ["--checkpoint", str(run), *SMALL, *OPTIONS]
    codes = [
        sweep_capacity.main([*command, "--capacities", "1.0"]),
        sweep_capacity.main([*command, "--capacities", "1.0", "1.6", "--calibrations", "quantile"]),
    ]
    refused = [
        sweep_capacity.main([*command, "--capacities", "99"]),
        sweep_capacity.main(["--checkpoint", str(run), "--prompts", "1"]),
        sweep_capacity.main(["--checkpoint", str(run / "nothing")]),
    ]
    return [*codes, *refused]


def test_points_of_two_commands_are_in_one_file_with_times_and_the_report(tmp_path: Path) -> None:
    run_on_ranks(train_briefly, 1, text_settings(tmp_path))
    run = tmp_path / "run"
    assert run_alone(sweep, run) == [0, 0, 2, 2, 2]
    (path,) = (run / "sweeps").glob("*.json")
    found = read_sweep(path)
    assert {point.name for point in found.points} == {"as trained", "gamma 1", "quantile 1", "quantile 1.6"}
    assert all(point.ms["q1"] <= point.ms["median"] <= point.ms["q3"] for point in found.points)
    assert found.timed_batch == 2 and found.device.startswith("CPU, ")
    assert path.with_suffix(".svg").read_text().startswith("<?xml")
    assert ">Capacity<" in (run / "report.html").read_text(encoding="utf-8")
