import json
import sys
from pathlib import Path

from diffmoe_scale.bench.gpu_parts import dry_parts, gpu_parts
from diffmoe_scale.bench.gpu_report import Part, run_parts


def python(name: str, code: str, limit_s: float = 60) -> Part:
    return Part(name, limit_s, (sys.executable, "-c", code))


def test_a_part_that_breaks_costs_itself_only(tmp_path: Path) -> None:
    parts = [
        python("fails", "print('why'); raise SystemExit(3)"),
        python("hangs", "import time; print('begun', flush=True); time.sleep(600)", limit_s=2),
        Part("missing", 60, ("/no/such/program",)),
        python("works", "import sys; open(sys.argv[1] + '/made', 'w')"),
    ]
    parts[3] = Part("works", 60, (*parts[3].command, "{out}"))
    results = run_parts(parts, tmp_path, limit_s=120)
    assert [result.outcome for result in results] == ["failed", "out of time", "failed", "ok"]
    assert (tmp_path / "made").exists()
    kept = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [result["tail"] for result in kept[:2]] == [["why"], ["begun"]]
    assert "/no/such/program" in kept[2]["tail"][0]
    assert (tmp_path / "fails.log").read_text(encoding="utf-8") == "why\n"


def test_what_is_done_is_on_disk_before_the_next_part_begins(tmp_path: Path) -> None:
    code = "import sys, json; sys.exit(len(json.load(open(sys.argv[1] + '/report.json'))) - 1)"
    second = Part("second", 60, (*python("second", code).command, "{out}"))
    first, looked = run_parts([python("first", ""), second], tmp_path, limit_s=60)
    assert (first.outcome, looked.outcome) == ("ok", "ok")


def test_the_time_of_the_whole_is_kept(tmp_path: Path) -> None:
    parts = [python("long", "import time; time.sleep(600)"), python("late", "")]
    results = run_parts(parts, tmp_path, limit_s=1)
    assert [result.outcome for result in results] == ["out of time", "not begun"]
    assert results[0].seconds < 30


def test_the_parts_fit_into_nine_minutes_but_for_their_reserves() -> None:
    for parts in (gpu_parts(), dry_parts()):
        names = [part.name for part in parts]
        assert len(set(names)) == len(names)
    # Limits are twice what a part should take: the whole is kept by the limit of the whole.
    assert sum(part.limit_s for part in gpu_parts()) < 2 * 540
