"""A watch looks many times and reports what is new."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any  # stands for what is not used

from diffmoe_scale.evaluation.harness.drawing import Part
from diffmoe_scale.evaluation.harness.result import JobResult, write_result
from diffmoe_scale.evaluation.harness.run import Harness
from tests.report.test_evaluation import result


def test_results_are_reported_at_first_and_when_they_change(tmp_path: Path) -> None:
    reports: list[int] = []

    def report(results: Sequence[JobResult]) -> None:
        reports.append(len(results))

    config: Any = SimpleNamespace(evaluation=SimpleNamespace(output=str(tmp_path)))
    unused: Any = None
    harness = Harness(config, Part(), unused, [], None, unused, report)
    harness._report()
    harness._report()
    found = result(100, 0.5, [0, 1, 0, 0])
    (tmp_path / found.folder).mkdir()
    write_result(tmp_path / found.folder, found)
    harness._report()
    harness._report()
    assert reports == [0, 1]
