"""Tables of scores by prompt, group and part, and the order of results."""

from pathlib import Path

import pytest

from diffmoe_scale.evaluation.harness.drawing import read_drawn
from diffmoe_scale.evaluation.harness.records import RecordWriter, read_records
from diffmoe_scale.evaluation.harness.result import JobResult, make_table, write_result, write_results
from diffmoe_scale.evaluation.suites.suite import PictureScore, Suite, SuitePrompt


class Halves(Suite):
    """Scores the prompts whose text is not `left out`."""

    def is_scored(self, prompt: int) -> bool:
        return self.prompts[prompt].text != "left out"


def test_a_table_has_means_of_prompts_groups_and_parts() -> None:
    """Two pictures a prompt, of three prompts in two groups; one more is not scored."""
    prompts = [
        SuitePrompt("a", "x"),
        SuitePrompt("left out", "x"),
        SuitePrompt("b", "x"),
        SuitePrompt("c", "y"),
    ]
    suite = Halves(kind="halves", name="halves", prompts=prompts, copies=2)
    scores = {
        place: PictureScore(value, {"odd": [value]} if place % 2 else {"even": [value, 0.0]})
        for place, value in {0: 0.0, 1: 1.0, 4: 1.0, 5: 1.0, 6: 0.25, 7: 0.25}.items()
    }
    table = make_table(suite, scores)
    assert table.prompts == [0, 2, 3]
    assert table.by_picture == [0.0, 1.0, 1.0, 1.0, 0.25, 0.25] and table.by_prompt == [0.5, 1.0, 0.25]
    assert table.total.value == pytest.approx(1.75 / 3)
    assert {name: one.value for name, one in table.groups.items()} == {"x": 0.75, "y": 0.25}
    assert {name: one.count for name, one in table.parts.items()} == {"odd": 3, "even": 6}
    assert table.parts["odd"].value == 0.75 and table.parts["even"].value == pytest.approx(1.25 / 6)


def test_groups_count_alike_where_the_benchmark_says_so_and_one_group_is_none() -> None:
    class Means(Suite):
        means_of_groups = True

    prompts = [SuitePrompt("a", "x"), SuitePrompt("b", "x"), SuitePrompt("c", "y")]
    suite = Means(kind="means", name="means", prompts=prompts)
    scores = {place: PictureScore(value) for place, value in enumerate((0.0, 0.5, 1.0))}
    assert make_table(suite, scores).total.value == pytest.approx((0.25 + 1.0) / 2)
    one = Suite(kind="one", name="one", prompts=prompts[:2])
    assert make_table(one, scores).groups == {}


def result(folder: str, *, step: int, steps: int | str = 10, suite: str = "scenes") -> JobResult:
    return JobResult(
        fingerprint="f",
        folder=folder,
        run="run",
        checkpoint="c",
        step=step,
        weights="ema",
        suite=suite,
        kind="scenes",
        suite_fingerprint="s",
        means_of_groups=False,
        sampling={},
        varied={"steps": steps},
        seed=0,
        prompts=[],
        groups=[],
        files=[],
        capacity=1.0,
        calls=1.0,
        flops=1.0,
        seconds=1.0,
    )


def test_results_are_ordered_by_suite_step_and_the_size_of_numbers(tmp_path: Path) -> None:
    expected = [
        result("z", step=2, steps=9),
        result("y", step=2, steps=10),
        result("x", step=10, steps=1),
        result("w", step=1, suite="texts"),
    ]
    for one in expected[::-1]:
        (tmp_path / one.folder).mkdir()
        write_result(tmp_path / one.folder, one)
    assert [one.folder for one in write_results(tmp_path)] == ["z", "y", "x", "w"]


def test_records_are_objects_in_the_order_of_their_time_and_finite(tmp_path: Path) -> None:
    (tmp_path / "drawn-2of2-0.jsonl").write_bytes(b'{"a": 0, "time": 5}\n[4]\n7\n')
    with RecordWriter(tmp_path / "drawn-1of2-0.jsonl") as records:
        records.write({"a": 1})
        records.write({"a": 2})
        with pytest.raises(ValueError, match="not JSON compliant"):
            records.write({"a": float("nan")})
    assert [entry["a"] for entry in read_records(tmp_path, "drawn")] == [0, 1, 2]


@pytest.mark.parametrize(("before", "now"), [("1of1-3", "1of1-0"), ("3of16-0", "1of1-0")])
def test_of_a_picture_that_was_drawn_anew_the_later_record_counts(
    before: str, now: str, tmp_path: Path
) -> None:
    cost = {"capacity": 1.0, "calls": 2.0, "flops": 3.0, "seconds": 4.0, "thresholds": ""}
    for name, digest in ((before, "old"), (now, "new")):
        with RecordWriter(tmp_path / f"drawn-{name}.jsonl") as records:
            records.write({"places": [5], "digests": [digest], "scores": None, **cost})
    assert read_drawn(tmp_path)[5].digest == "new"
