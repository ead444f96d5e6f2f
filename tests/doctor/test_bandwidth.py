"""Bandwidth of a cluster, and what of it is a finding."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from diffmoe_scale.doctor.__main__ import why_no_bandwidth
from diffmoe_scale.doctor.bandwidth import Speeds, assumed_rates, describe, judge_speeds
from diffmoe_scale.doctor.reach import ANSWER
from tests.doctor.test_judge import nodes
from tests.launch.scripts import ROOT
from tests.ports import free_port

GPUS = Speeds(
    ranks=16,
    ranks_a_node=8,
    gpu="NVIDIA H100 80GB HBM3",
    all_reduce=300.0,
    all_to_all=80.0,
    from_first={"n2": 40.0, "n3": 42.0, "n4": 41.0},
)


def test_rates_are_those_of_the_planner() -> None:
    """16 GPUs in two machines: 8 cards for the ring, and each rank's own card for half of its rows."""
    all_reduce, all_to_all = assumed_rates(GPUS) or (0.0, 0.0)
    assert all_reduce == pytest.approx(min(450 * 0.82, 8 * 50 * 0.92))
    assert all_to_all == pytest.approx((15 / 16) / (0.5 / (50 * 0.92)))
    within, within_all_to_all = assumed_rates(replace(GPUS, ranks=8)) or (0.0, 0.0)
    assert within == within_all_to_all == pytest.approx(450 * 0.82)


def test_what_is_fast_enough_is_no_finding() -> None:
    assert list(judge_speeds(GPUS)) == []
    assert list(judge_speeds(replace(GPUS, gpu="", all_reduce=0.1, all_to_all=0.1))) == []
    assert "all-reduce 300 GB/s, all-to-all 80 GB/s; the planner assumes 368 and 86.2" in describe(GPUS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"all_reduce": 20.0}, "all nodes: all-reduce reaches 20 GB/s, the planner assumes 368;"),
        ({"all_to_all": 4.0}, "all nodes: all-to-all reaches 4 GB/s, the planner assumes 86.2;"),
        ({"from_first": {"n2": 40.0, "n3": 4.0, "n4": 41.0}}, "n3: gets 4 GB/s from the first node, the"),
    ],
)
def test_what_is_slow_is_one_finding(change: dict[str, object], words: str) -> None:
    (found,) = judge_speeds(replace(GPUS, **change))  # type: ignore[arg-type]  # fields of several types
    assert str(found).startswith(words)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"packages": {}}, "n2 has no torch"),
        ({"gpus": []}, "the nodes have different numbers of GPUs"),
    ],
)
def test_where_it_cannot_be_measured_the_reason_is_said(change: dict[str, object], reason: str) -> None:
    assert why_no_bandwidth(nodes("n2", **change), 4) == reason
    assert why_no_bandwidth(nodes()[1:], 4) == "not all nodes answered"


@pytest.mark.slow
def test_processes_of_two_nodes_are_measured() -> None:
    command = [sys.executable, "-m", "diffmoe_scale.doctor", "--port", str(free_port())]
    command += ["--measure", "127.0.0.1", "2"]
    started = [
        subprocess.Popen([*command, node], cwd=ROOT, stdout=subprocess.PIPE, text=True) for node in "01"
    ]
    first, second = (process.communicate(timeout=200)[0] for process in started)
    speeds = Speeds(**json.loads(first.splitlines()[-1].removeprefix(ANSWER)))
    assert speeds.ranks == 2 and speeds.all_reduce > 0 and speeds.all_to_all > 0
    assert all(speed > 0 for speed in speeds.from_first.values()) and ANSWER not in second
