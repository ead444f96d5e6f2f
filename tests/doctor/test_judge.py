"""One node of four is not as it should be: it is named, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from diffmoe_scale.doctor.facts import Facts
from diffmoe_scale.doctor.judge import judge

HOSTS = ["n1", "n2", "n3", "n4"]
GOOD = Facts(
    host="",
    python="3.11.7 at /x/.venv/bin/python",
    packages={"torch": "2.14.1", "deepspeed": "0.19.8"},
    gpus=["NVIDIA H100 80GB HBM3, 580.1"] * 8,
    missing_tools=[],
    write_mb_s=500.0,
    seen=HOSTS,
    clock_offset_s=0.01,
    free_gb=900.0,
    shared_memory_gb=60.0,
    open_files=65536,
)


def nodes(host: str = "", **change: Any) -> list[Facts]:
    return [replace(GOOD, host=name, **(change if name == host else {})) for name in HOSTS]


def test_equal_and_complete_nodes_have_no_finding() -> None:
    assert judge(nodes(), ["torch", "deepspeed"]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packages": {"torch": "2.13.0", "deepspeed": "0.19.8"}}, "torch: 2.13.0, the others 2.14.1"),
        ({"packages": {"torch": "2.14.1"}}, "lacks deepspeed"),
        ({"python": "3.11.2 at /usr/bin/python3"}, "Python: 3.11.2 at /usr/bin/python3, the others 3.11.7"),
        ({"gpus": ["NVIDIA H100 80GB HBM3, 580.1"] * 7}, "GPUs: "),
        ({"gpus": ["NVIDIA H100 80GB HBM3, 570.0"] * 8}, "570.0"),
        ({"missing_tools": ["g++"]}, "has no g++"),
        ({"write_mb_s": 60.0}, "writes 60 MB/s to the shared folder, the others 500"),
        ({"seen": ["n3"]}, "does not see what n1, n2, n4 wrote"),
        ({"clock_offset_s": -7.5}, "its clock is -7.5 s from the head's"),
        ({"free_gb": 1.5}, "has 1.5 GB of free space"),
        ({"shared_memory_gb": 0.064}, "has 0.064 GB of shared memory"),
        ({"open_files": 1024}, "has 1.02e+03 of open files"),
        ({"problems": ["port 29500 of n1 does not answer (timed out)"]}, "port 29500 of n1 does not answer"),
    ],
)
def test_a_bad_node_is_named_with_what_is_wrong_and_what_to_do(change: dict[str, Any], words: str) -> None:
    (finding,) = judge(nodes("n3", **change), ["torch", "deepspeed"])
    assert finding.host == "n3" and words in finding.what and finding.cure
    assert str(finding) == f"n3: {finding.what}; {finding.cure}"


def test_a_folder_that_nobody_shares_is_said_of_every_node() -> None:
    alone = [replace(GOOD, host=name, seen=[name]) for name in HOSTS]
    assert [finding.host for finding in judge(alone, [])] == HOSTS


def test_a_node_that_cannot_write_is_not_called_slow_too() -> None:
    broken = nodes("n3", write_mb_s=0.0, problems=["/shared cannot be written to (no)"], seen=[], free_gb=0.0)
    others = [replace(node, seen=["n1", "n2", "n4"]) for node in broken if node.host != "n3"]
    (finding,) = judge([*broken[2:3], *others], [])
    assert str(finding).startswith("n3: /shared cannot be written to (no); mount the same file system")


def test_of_two_nodes_the_first_by_name_is_right_whoever_answers_first() -> None:
    old, new = replace(GOOD, host="n1"), replace(GOOD, host="n2", packages={"torch": "1"})
    pair = [replace(node, seen=["n1", "n2"]) for node in (new, old)]
    (finding,) = judge(pair, ["torch"])
    assert str(finding).startswith("n2: torch: 1, the others 2.14.1")


def test_a_slow_disk_of_all_is_slow() -> None:
    assert len(judge([replace(node, write_mb_s=5.0) for node in nodes()], [])) == 4
