import json
import logging
import math
import sys
from pathlib import Path
from typing import Any  # what the two packages read back is untyped

import numpy as np
import pytest
import wandb
from PIL import Image

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.telemetry.metrics import MetricValue
from diffmoe_scale.telemetry.trackers import GuardedTracker, Tracker, build_trackers
from tests.telemetry.readers import read_tensorboard, read_wandb

METRICS: dict[str, MetricValue] = {"loss/diffusion": 0.5, "moe/load/1": [2.0, 0.25, 1.0], "moe/empty": []}
TENSORBOARD = TelemetryConfig()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grid.png"
    Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)).save(path)
    return path


def log_steps(run_directory: Path, steps: list[int], *, start_step: int = 0) -> None:
    (tracker,) = build_trackers(TENSORBOARD, run_directory, {}, start_step=start_step)
    for step in steps:
        tracker.log(step, METRICS)
    tracker.close()


def test_tensorboard_shows_scalars_extremes_of_vectors_and_pictures(tmp_path: Path, picture: Path) -> None:
    (tracker,) = build_trackers(TENSORBOARD, tmp_path, {})
    tracker.log(20, METRICS)
    tracker.images(20, "samples", picture)
    tracker.close()
    events = read_tensorboard(tmp_path)
    assert {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    } == {
        "loss/diffusion": [(20, 0.5)],
        "moe/load/1/min": [(20, 0.25)],
        "moe/load/1/max": [(20, 2.0)],
    }
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (20, 6, 4)


def test_elements_without_a_mean_are_no_extremes(tmp_path: Path) -> None:
    (tracker,) = build_trackers(TENSORBOARD, tmp_path, {})
    tracker.log(20, {"a": [math.nan, 1.0, 3.0], "b": [math.nan]})
    tracker.close()
    events = read_tensorboard(tmp_path)
    found = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert found == {"a/min": 1.0, "a/max": 3.0}


def test_tensorboard_shows_a_step_once_after_a_resume(tmp_path: Path) -> None:
    log_steps(tmp_path, [1, 2, 3, 4])
    log_steps(tmp_path, [3, 4, 5], start_step=2)
    assert [event.step for event in read_tensorboard(tmp_path).Scalars("loss/diffusion")] == [1, 2, 3, 4, 5]


def test_tensorboard_shows_a_step_once_after_a_new_beginning_and_several_restarts(tmp_path: Path) -> None:
    log_steps(tmp_path, [1, 2, 3])
    log_steps(tmp_path, [1, 2, 3, 4])
    log_steps(tmp_path, [3, 4, 5, 6], start_step=2)
    log_steps(tmp_path, [3], start_step=2)
    assert [event.step for event in read_tensorboard(tmp_path).Scalars("loss/diffusion")] == [1, 2, 3]


class FakeWandb:
    """What WandbTracker uses of the package; `runs` are what was sent to each id."""

    def __init__(self) -> None:
        self.runs: dict[str, list[dict[str, Any]]] = {}

    def Settings(self, **settings: Any) -> None:
        pass

    def Image(self, path: str) -> str:
        return path

    def init(self, *, id: str, **settings: Any) -> "FakeWandb":
        self.id = id
        self.runs.setdefault(id, [])
        return self

    def define_metric(self, *names: str, **settings: Any) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.runs[self.id].append(values)

    def finish(self) -> None:
        pass


def log_to_wandb(run_directory: Path, steps: list[int], *, start_step: int) -> None:
    config = TelemetryConfig(tensorboard=False, wandb="offline")
    (tracker,) = build_trackers(config, run_directory, {}, start_step=start_step)
    for step in steps:
        tracker.images(step, "samples", Path("grid.png"))
        tracker.log(step, {"loss/diffusion": 0.5})
    tracker.close()


def test_wandb_is_sent_a_step_once_after_any_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log_to_wandb(tmp_path, [1, 2], start_step=0)
    log_to_wandb(tmp_path, [1, 2, 3, 4], start_step=0)  # killed before its first checkpoint: a new run
    log_to_wandb(tmp_path, [3], start_step=2)
    log_to_wandb(tmp_path, [3, 4, 5], start_step=2)
    first, second = fake.runs.values()
    for values, last in ((first, 2), (second, 5)):
        assert [line["step"] for line in values if "loss/diffusion" in line] == list(range(1, last + 1))
        assert [line["step"] for line in values if "samples" in line] == list(range(1, last + 1))


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"metrics": "3"}', b"\xff", b"[" * 10**5])
def test_damaged_record_of_what_wandb_was_sent_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    log_to_wandb(tmp_path, [1], start_step=0)
    (tmp_path / "wandb_steps.json").write_bytes(damage)
    with pytest.raises(RunError, match=r"wandb_steps\.json is damaged .*; remove it and wandb_id"):
        log_to_wandb(tmp_path, [2], start_step=1)


def test_wandb_offline_writes_scalars_and_pictures_under_the_runs_own_id(
    tmp_path: Path, picture: Path
) -> None:
    run_directory = tmp_path / "demo"
    (tracker,) = build_trackers(
        TelemetryConfig(tensorboard=False, wandb="offline"), run_directory, {"run": {"seed": 1}}
    )
    tracker.log(20, METRICS)
    tracker.images(20, "samples", picture)
    tracker.close()
    wandb.teardown()  # its own process writes the file, and is done when it has ended
    run_id = (run_directory / "wandb_id.txt").read_text().strip()
    (file,) = run_directory.glob("wandb/offline-run-*/*.wandb")
    records = read_wandb(file)
    assert [record.run.run_id for record in records if record.HasField("run")] == [run_id]
    scalars, image = (
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    )
    expected = {"step": 20, "loss/diffusion": 0.5, "moe/load/1/min": 0.25, "moe/load/1/max": 2.0}
    assert {name: value for name, value in scalars.items() if not name.startswith("_")} == expected
    assert image["step"] == 20 and any("samples" in name for name in image)
    (copy,) = file.parent.glob("files/media/images/samples*.png")
    assert copy.read_bytes() == picture.read_bytes()


def test_trackers_are_off_where_the_config_says_so(tmp_path: Path) -> None:
    assert build_trackers(TelemetryConfig(tensorboard=False), tmp_path, {}) == [] and not list(
        tmp_path.iterdir()
    )


def test_a_tracker_that_does_not_start_is_an_error_with_the_setting_that_leaves_it_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(RuntimeError, match=r"TensorBoard did not start: .*; set telemetry.tensorboard=false"):
        build_trackers(TENSORBOARD, tmp_path, {})


class FailingTracker(Tracker):
    def log(self, step: int, metrics: Any) -> None:
        raise ConnectionError("no route")

    def images(self, step: int, name: str, path: Path) -> None:
        raise OSError("no space")

    def close(self) -> None:
        raise TimeoutError


def test_a_failing_tracker_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tracker = GuardedTracker("TensorBoard", FailingTracker())
    tracker.log(1, {})
    tracker.images(1, "samples", Path("none.png"))
    tracker.close()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            "TensorBoard failed (ConnectionError: no route); training goes on, further failures are not "
            "logged",
        )
    ]
