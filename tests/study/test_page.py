"""What the page says of rows with made-up numbers."""

from pathlib import Path

from diffmoe_scale.study.record import write_row
from diffmoe_scale.study.study import Study
from tests.study.studies import result_of, small_study


def verdict(part: str, variant: str) -> str:
    """The last column of its line."""
    (line,) = [line for line in part.splitlines() if line.startswith(f"| {variant} ")]
    return line.split("|")[-2].strip()


def test_the_page_shows_what_seeds_show_and_no_more(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    study = Study(small_study(tmp_path, ["study.seeds=[0,1,2,3]"]), file, ["study.seeds=[0,1,2,3]"])
    for row in study.rows:
        # Dense is 30 % worse in loss, and equal in score but for noise.
        noise = 0.01 * ((row.seed * 7) % 4 + (row.seed == 2 and row.variant.name == "dense"))
        loss = (0.5 + noise) * (1.3 if row.variant.name == "dense" else 1)
        score = 0.4 + noise * (-1 if row.variant.name == "dense" else 1)
        if row.variant.name != "static":
            write_row(row, result_of(row, loss=loss, score=score))
    study.failures = {"static": "no disk"}
    page = study.write_report()
    _, *parts = page.with_suffix(".md").read_text(encoding="utf-8").split("\n## ")
    final, by_loss, loss_order, by_score, _, rows = parts
    assert "| diffmoe | 4 | 515.000 [494.457, 535.543] | 41.5 " in final
    assert "| static | 0 | waiting |" in final
    assert [verdict(part, "dense") for part in (by_loss, by_score)] == ["worse", "not shown"]
    assert verdict(loss_order, "diffmoe") == "better"
    assert f"python tools/study.py --config {file} --only dense --seed 3 'study.seeds=[0,1,2,3]'" in rows
    html = page.read_text(encoding="utf-8")
    assert "static failed: no disk" in html and html.count("<img") == 2
    assert len((page.parent / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 8


def test_a_page_without_a_row_is_a_page(tmp_path: Path) -> None:
    study = Study(small_study(tmp_path), tmp_path / "study.yaml", [])
    assert "No row is done yet." in study.write_report().read_text(encoding="utf-8")


def test_a_bar_in_a_file_s_name_ends_no_cell_of_the_markdown(tmp_path: Path) -> None:
    page = Study(small_study(tmp_path), tmp_path / "a|b.yaml", []).write_report()
    lines = page.with_suffix(".md").read_text(encoding="utf-8").split("## Rows")[1].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert "a\\|b.yaml" in rows[-1]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
