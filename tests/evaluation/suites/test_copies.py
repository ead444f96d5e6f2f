"""Reading the user's copies of benchmarks: lines, tables and scores, whole and odd ones."""

import csv
from pathlib import Path
from typing import Any  # values of any type

import pytest

from diffmoe_scale.evaluation.suites.copies import check_fields, read_json_lines, read_table, share


@pytest.mark.parametrize("value", [True, -0.1, 1.1, "nan", "x", None, [0.5]])
def test_a_score_is_a_number_from_0_to_1(value: Any) -> None:
    with pytest.raises(ValueError, match=r"here has the score .*; expected a number from 0 to 1"):
        share(value, "here")
    assert [share(good, "here") for good in (0, 1, 0.25, "0.5")] == [0.0, 1.0, 0.25, 0.5]


def test_a_truth_value_is_no_number_and_a_number_no_truth_value() -> None:
    check_fields({"count": 1, "correct": True}, {"count": int, "correct": bool}, "here", "it")
    for entry in ({"count": True, "correct": True}, {"count": 1, "correct": 1}):
        with pytest.raises(ValueError, match=r"here has .*; expected an object of it with count, correct"):
            check_fields(entry, {"count": int, "correct": bool}, "here", "it")


def test_a_line_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{"[" * 200_000}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl line 3 is no JSON"):
        read_json_lines(path, {"a": int}, "it")


def test_a_tables_columns_are_found_by_name_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "x" * 200_000  # more than the csv module takes by itself
    path.write_text(f' b , a\n1,2\n\n3,"{long}"\n', encoding="utf-8")
    limit = csv.field_size_limit()
    rows = list(read_table(path, ["a", "b"], "it"))
    assert rows == [(f"{path} line 2", {"b": "1", "a": "2"}), (f"{path} line 4", {"b": "3", "a": long})]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b\n1\n", r"line 1 names no column a"),
        ("a,b\n1,2\n3\n", r"line 3 has 1 cells; the header has 2"),
        ("a,b\n1,2,3\n", r"line 2 has 3 cells; the header has 2"),
        ('a,b\n"1"2,3\n', r"is no table of it \("),
    ],
)
def test_an_odd_table_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        list(read_table(tmp_path / "a.csv", ["a"], "it"))
