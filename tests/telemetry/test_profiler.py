import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from diffmoe_scale.telemetry import profiler as module
from diffmoe_scale.telemetry.phases import Phases
from diffmoe_scale.telemetry.profiler import ProfileOnDemand

CPU = torch.device("cpu")


def steps(profiler: ProfileOnDemand, first: int, last: int) -> None:
    phases = Phases(CPU, ("forward",))
    for step in range(first, last + 1):
        profiler.begin_step(step)
        with phases("forward"):
            torch.ones(4, 4) @ torch.ones(4, 4)
        profiler.end_step(step)


def test_a_file_asks_for_a_trace_of_the_next_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINETO_LOG_LEVEL", "")  # so that it is gone after the test
    monkeypatch.delenv("KINETO_LOG_LEVEL")
    request, folder = tmp_path / "profile", tmp_path / "traces"
    profiler = ProfileOnDemand(request, folder, steps=2, device=CPU)
    steps(profiler, 1, 3)
    assert not folder.exists()
    request.touch()
    steps(profiler, 4, 8)
    profiler.close()
    assert not request.exists()
    (trace,) = folder.iterdir()
    assert trace.name == "step_00000005.json.gz"
    names = [event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]]
    assert names.count("forward") == 2 and "aten::mm" in names
    # Read once a process: libkineto would name a GPU that is not there.
    assert os.environ["KINETO_LOG_LEVEL"] == "6"


def test_a_run_that_ends_before_the_trace_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").touch()
    profiler = ProfileOnDemand(tmp_path / "profile", tmp_path / "traces", steps=5, device=CPU)
    steps(profiler, 1, 2)
    profiler.close()
    assert "the run ended before step 5: no trace" in caplog.text


def test_a_trace_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "traces").touch()
    (tmp_path / "profile").touch()
    profiler = ProfileOnDemand(tmp_path / "profile", tmp_path / "traces", steps=1, device=CPU)
    steps(profiler, 1, 2)
    assert "no trace: " in caplog.text


class Recorded:
    """In the place of torch's profile: what was asked of it."""

    def __init__(self, failure: Exception | None = None, **_: object) -> None:
        self.failure, self.told = failure, list[str]()

    def start(self) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")

    def export_chrome_trace(self, path: str) -> None:
        self.told.append(Path(path).name)
        if self.failure:
            raise self.failure


@pytest.mark.parametrize("failure", [OSError("disk full"), RuntimeError("kineto"), None])
def test_a_trace_ends_once_and_a_request_in_between_waits_for_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception | None,
) -> None:
    made: list[Recorded] = []

    def make(**_: object) -> Recorded:
        made.append(Recorded(failure))
        return made[-1]

    monkeypatch.setattr(module, "profile", make)
    request = tmp_path / "profile"
    profiler = ProfileOnDemand(request, tmp_path / "traces", steps=2, device=CPU)
    request.touch()
    steps(profiler, 1, 1)
    request.touch()
    steps(profiler, 2, 3)
    assert [trace.told for trace in made] == [["start", "stop", "step_00000002.json.gz"], ["start"]]
    assert ("no trace at " in caplog.text) == (failure is not None)
    profiler.close()
    profiler.close()
    assert made[1].told == ["start", "stop"]
