import time
from functools import partial

import torch

from diffmoe_scale.bench.timing import MIB, format_table, measure_memory, quartiles, ratios, time_interleaved

CPU = torch.device("cpu")


def test_rounds_interleave_and_begin_with_another_contender_each():
    calls: list[str] = []
    contenders = {name: partial(calls.append, name) for name in "abc"}
    seconds = time_interleaved(contenders, rounds=3, device=CPU)
    assert "".join(calls) == "cab" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_seconds_are_those_of_the_call():
    seconds = time_interleaved(
        {"sleep": lambda: time.sleep(0.02), "none": lambda: None}, rounds=2, device=CPU
    )
    assert min(seconds["sleep"]) >= 0.02


def test_memory_is_the_peak_of_what_lived_at_once():
    def call() -> None:
        for _ in range(3):
            first = torch.empty(MIB, dtype=torch.float32)
            second = torch.empty(2 * MIB, dtype=torch.float32)
            del first, second

    assert measure_memory(call, CPU) == {"peak_mib": 12.0, "largest_mib": 8.0}


def test_ratios_are_paired_before_the_median():
    assert (
        ratios([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
        == quartiles([2.0, 3.0, 1.0])
        == {"q1": 1.5, "median": 2.0, "q3": 2.5}
    )
    assert quartiles([3.0]) == {"q1": 3.0, "median": 3.0, "q3": 3.0}


def test_table_has_aligned_columns():
    table = format_table(
        [
            {"name": "a", "ms": {"q1": 1.0, "median": 2.0, "q3": 3.0}, "mib": 1024.0},
            {"name": "longer", "ms": {}, "mib": 1.0},
        ]
    )
    header, first, second = table.splitlines()
    assert header.split() == ["name", "ms", "mib"] and first.startswith(
        "a       2.000 [1.000 .. 3.000]  1,024.0"
    )
    assert second.index("1.0") == first.index("1,024.0")
