"""The page of an evaluation: scores, differences along one axis, pictures, and nothing unescaped."""

from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffmoe_scale.evaluation.harness.result import JobResult, ScoreTable
from diffmoe_scale.evaluation.harness.statistics import estimate, estimate_groups
from diffmoe_scale.report.evaluation import _curves, write_evaluation_report
from diffmoe_scale.report.evaluation_tables import difference_tables, labels, metric_tables, score_tables

PROMPTS, GROUPS = ["a", "b <i>", "c", "d|e"], ["one", "one", "two", "two"]


def result(step: int, capacity: float, by_prompt: list[float]) -> JobResult:
    table = ScoreTable(
        total=estimate(by_prompt, GROUPS, means_of_groups=True),
        groups=estimate_groups(by_prompt, GROUPS),
        parts={},
        prompts=[0, 1, 2, 3],
        by_prompt=by_prompt,
        by_picture=by_prompt,
    )
    return JobResult(
        fingerprint="f", folder=f"job-{step}-{capacity}", run="/x/run", checkpoint="c", step=step,
        weights="ema", suite="scenes", kind="scenes", suite_fingerprint="s", means_of_groups=True,
        sampling={}, varied={"capacity": capacity, "steps": 10}, seed=0, prompts=PROMPTS, groups=GROUPS,
        files=[f"{place:06d}.png" for place in range(4)], capacity=capacity, calls=20, flops=2.5e9,
        seconds=0.1, scores={"exact rule": table},
    )  # fmt: skip


RESULTS = [
    result(100, 0.5, [0, 0, 0, 0]),
    result(100, 1.0, [1, 0, 0, 0]),
    result(200, 0.5, [1, 1, 0, 0]),
    result(200, 1.0, [1, 1, 1, 0]),
]


def test_labels_name_what_differs() -> None:
    assert labels(RESULTS)[0] == "step 100, capacity 0.5" and labels(RESULTS[:1]) == ["step 100"]
    assert labels([RESULTS[0], RESULTS[2]]) == ["step 100", "step 200"]


def test_score_table_has_groups_and_cost() -> None:
    (found,) = score_tables(RESULTS)
    assert list(found.header[:4]) == ["weights", "score", "one", "two"]
    row = dict(zip(found.header, found.rows[3], strict=True))
    assert (
        row["score"].startswith("75.0 [")
        and row["one"].startswith("100.0 [")
        and row["operations"] == "2.5 GFLOP"
    )


def test_differences_are_of_pairs_that_differ_in_one_thing() -> None:
    (found,) = difference_tables(RESULTS)
    rows = {(row[0], row[1]): row[2] for row in found.rows}
    assert rows == {
        ("step 100 to step 200", "capacity 0.5"): "+50.0",
        ("step 100 to step 200", "capacity 1.0"): "+50.0",
        ("capacity 0.5 to capacity 1.0", "step 100"): "+25.0",
        ("capacity 0.5 to capacity 1.0", "step 200"): "+25.0",
    }


def test_no_difference_has_no_interval_of_no_length() -> None:
    (found,) = difference_tables([RESULTS[0], replace(RESULTS[2], scores=RESULTS[0].scores)])
    assert [row[2:4] for row in found.rows] == [["+0.0", "no prompt differs"]]


def test_curves_have_bands(tmp_path: Path) -> None:
    bands = _curves(RESULTS)[1]
    # matplotlib names what fill_between draws.
    text = b64decode(bands.split("base64,")[1].split('"')[0]).decode()
    assert text.count("FillBetweenPolyCollection") == 2, "one for each capacity"


def test_page_and_markdown_hold_pictures_and_are_escaped(tmp_path: Path) -> None:
    for found in RESULTS[:-1]:
        for file in found.files:
            path = tmp_path / found.folder / "pictures" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    waiting = replace(RESULTS[3], scores={}, waiting="score with GenEval's own code")
    path = write_evaluation_report(tmp_path, [*RESULTS[:3], waiting])
    page, text = path.read_text(encoding="utf-8"), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.count('class="tile"') == 12 and page.count("missing</span>") == 4
    assert "b &lt;i&gt;" in page and "<i>" not in page.split("<main>")[1].replace("<i style", "")
    assert "score with GenEval&#x27;s own code" in page and "Over training" in page
    assert "![](job-100-0.5/pictures/000000.png)" in text and "d\\|e" in text and "b &lt;i>" in text


def test_conditions_that_metrics_share_are_said_once() -> None:
    common = {"pictures": 9, "backbone": "net", "backbone_fingerprint": "f", "resize": "none", "error": None}
    metrics = [common | {"name": name, "value": 1.0, "reference": "ref"} for name in ("fd:timm", "kid:timm")]
    metrics.append(common | {"name": "is:timm", "value": 2.0, "reference": ""})
    (found,) = metric_tables([replace(RESULTS[0], metrics=metrics)])
    assert found.note == (
        "fd:timm, kid:timm: 9 pictures, net f, none, against ref; is:timm: 9 pictures, net f, none"
    )


def test_an_evaluation_without_results_has_a_page(tmp_path: Path) -> None:
    assert write_evaluation_report(tmp_path, []).is_file()
