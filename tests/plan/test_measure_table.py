"""The table of planned and measured memory: what it covers, and how it is written."""

import json
import statistics
from pathlib import Path

from diffmoe_scale.plan.measure import Measured
from diffmoe_scale.plan.measure_table import Row, cases, describe_rows, networks_of, write_rows
from diffmoe_scale.plan.memory import Memory
from diffmoe_scale.plan.search import FRAGMENTED, Layout
from tests.plan.layouts import config_of


def test_every_layout_is_there_once_with_both_capacities() -> None:
    found = list(cases(config_of(), ranks=4, expert_parallel=2))
    kinds = {
        (name, laid.model.precision, laid.parallel.zero_stage, laid.model.activation_checkpointing)
        for name, laid in found
    }
    assert len(found) == len(kinds) == 2 * 2 * 2 * 3
    assert {laid.parallel.expert_parallel for _, laid in found} == {2}
    assert {(name, laid.moe.capacity) for name, laid in found} == {
        (name, capacity) for name in networks_of(config_of()) for capacity in (1.0, 2.0)
    }


def test_rows_say_how_far_the_plan_is_off(tmp_path: Path) -> None:
    planned = Memory(40, 10, 20, 10, 5, 14, "backward")
    row = Row("a", "bf16", 1.0, Layout(2, 1, 4, "none"), planned, Measured(80, 90, 100, 85))
    lines = describe_rows([row, row])
    assert lines[1].endswith("-1.00 %")
    assert lines[-1] == "2 layouts: mean error 1.00 %, worst 1.00 %, lowest -1.00 %"
    write_rows(tmp_path / "new" / "table.json", [row], ranks=4)
    tree = json.loads((tmp_path / "new" / "table.json").read_text(encoding="utf-8"))
    assert tree["ranks"] == 4 and tree["layouts"][0]["planned_total"] == 99
    assert tree["layouts"][0]["peak"] == 100 and tree["layouts"][0]["layout"]["expert_parallel"] == 2


def test_the_committed_table_keeps_its_bars() -> None:
    """At least 40 layouts, 5 % on average, 10 % at worst; too little never by more than what is kept free."""
    path = Path(__file__).parents[2] / "docs" / "results" / "plan_memory.json"
    errors = [row["error"] for row in json.loads(path.read_text(encoding="utf-8"))["layouts"]]
    assert len(errors) >= 40 and min(errors) > -FRAGMENTED
    assert statistics.mean(map(abs, errors)) <= 0.05 and max(map(abs, errors)) <= 0.1
