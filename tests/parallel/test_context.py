"""Launcher variables, cores and process groups."""

import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from diffmoe_scale.parallel import device as device_module
from diffmoe_scale.parallel.context import (
    ParallelContext,
    initialize,
    is_peer_failure,
)
from diffmoe_scale.parallel.device import share_cores
from diffmoe_scale.parallel.launcher import adopt_launcher_variables
from tests.ranks import run_on_ranks

LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMP_NUM_THREADS",
)
SLURM_STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher's variables, and those that the code sets are gone after the test."""
    for name in (*LAUNCHER_VARIABLES, *SLURM_STEP):
        monkeypatch.setenv(name, "")  # so that it is restored even if it is not set now
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # the tests' own process stays where it is
    return monkeypatch


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    torch.set_num_threads(before)


def test_one_process_without_a_launcher_is_rank_0_of_1(launcher: pytest.MonkeyPatch) -> None:
    assert adopt_launcher_variables() == 0
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == [
        "0",
        "1",
        "0",
        "127.0.0.1",
    ]


def test_slurm_step_gives_rank_and_world_size(launcher: pytest.MonkeyPatch) -> None:
    for name, value in (SLURM_STEP | {"MASTER_PORT": "5"}).items():
        launcher.setenv(name, value)
    assert adopt_launcher_variables() == 3
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]


def test_slurm_allocation_without_a_step_is_one_process(launcher: pytest.MonkeyPatch) -> None:
    launcher.setenv("SLURM_NTASKS", "4")
    adopt_launcher_variables()
    assert os.environ["WORLD_SIZE"] == "1"


def test_launcher_inside_a_slurm_step_wins(launcher: pytest.MonkeyPatch) -> None:
    for name, value in {
        **SLURM_STEP,
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_PORT": "5",
    }.items():
        launcher.setenv(name, value)
    assert adopt_launcher_variables() == 1
    assert os.environ["WORLD_SIZE"] == "2"


def test_several_ranks_without_a_port_are_refused(launcher: pytest.MonkeyPatch) -> None:
    for name, value in SLURM_STEP.items():
        launcher.setenv(name, value)
    with pytest.raises(ValueError, match="WORLD_SIZE is 4 but MASTER_PORT is not set; start through"):
        initialize(expert_parallel=1, timeout_s=5)


def test_a_port_in_use_is_named_with_the_ways_to_another(launcher: pytest.MonkeyPatch) -> None:
    for name in ("share_cores", "keep_freed_memory"):  # they would change the process of the other tests
        launcher.setattr(device_module, name, lambda *_: None)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }.items():
            launcher.setenv(name, value)
        with pytest.raises(
            ValueError,
            match=(
                f"port {port} is in use, by another run perhaps; choose another with the launcher's "
                "--master_port"
            ),
        ):
            initialize(expert_parallel=1, timeout_s=5)


def test_expert_parallel_that_does_not_divide_the_world_names_those_that_do(
    launcher: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "MASTER_PORT": "5"}.items():
        launcher.setenv(name, value)
    with pytest.raises(
        ValueError,
        match=r"parallel.expert_parallel is 4 but the world has 6 ranks; choose one of \[1, 2, 3, 6\]",
    ):
        initialize(expert_parallel=4, timeout_s=5)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 6),
        ({"LOCAL_SIZE": "2"}, 3),
        ({"LOCAL_WORLD_SIZE": "3"}, 2),
        ({"LOCAL_SIZE": "8"}, 1),
        ({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "6"}, 6),
    ],
    ids=["alone", "deepspeed", "torchrun", "more ranks than cores", "set by the user"],
)
def test_ranks_of_a_machine_share_its_cores(
    launcher: pytest.MonkeyPatch, threads: None, variables: dict[str, str], expected: int
) -> None:
    for name, value in variables.items():
        launcher.setenv(name, value)
    share_cores(local_rank=0)
    assert torch.get_num_threads() == expected


@pytest.mark.parametrize(
    ("variables", "local_rank", "expected"),
    [
        ({"LOCAL_SIZE": "2"}, 0, {0, 4, 1, 5}),
        ({"LOCAL_SIZE": "2"}, 1, {2, 6, 3, 7}),
        ({"LOCAL_SIZE": "16"}, 3, None),
        ({}, 0, None),
        ({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "6"}, 0, None),
    ],
    ids=["first of two", "second of two", "more ranks than cores", "alone", "set by the user"],
)
def test_ranks_without_a_gpu_are_held_on_whole_cores(
    launcher: pytest.MonkeyPatch,
    threads: None,
    variables: dict[str, str],
    local_rank: int,
    expected: set[int] | None,
) -> None:
    """Four cores of two hardware threads: n and n + 4 are one core."""
    held: list[set[int]] = []
    launcher.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    launcher.setattr(os, "sched_setaffinity", lambda _, cores: held.append(set(cores)))
    launcher.setattr(device_module, "_place_of_core", lambda core: (0, core % 4, core))
    launcher.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in variables.items():
        launcher.setenv(name, value)
    share_cores(local_rank)
    assert held == ([] if expected is None else [expected])


def list_groups(context: ParallelContext) -> list[list[int]]:
    return [
        dist.get_process_group_ranks(group)
        for group in (context.dp_group, context.ep_group, context.expert_dp_group)
    ]


def test_neighbours_share_experts_and_every_second_rank_replicates_them() -> None:
    everyone = [0, 1, 2, 3]
    assert run_on_ranks(list_groups, 4, expert_parallel=2) == [
        [everyone, [0, 1], [0, 2]],
        [everyone, [0, 1], [1, 3]],
        [everyone, [2, 3], [0, 2]],
        [everyone, [2, 3], [1, 3]],
    ]


def list_timeouts_s(context: ParallelContext) -> list[float]:
    from deepspeed.utils import groups

    used = (
        context.dp_group,
        context.ep_group,
        context.expert_dp_group,
        context.control_group,
        groups._get_data_parallel_group(),
    )
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in used]


def test_no_group_waits_longer_for_a_stuck_rank_than_the_run_allows() -> None:
    # 60 s is what run_on_ranks asks for; torch's own default is 1800. Files alone may take longer.
    assert run_on_ranks(list_timeouts_s, 2, expert_parallel=2) == [[60.0] * 5] * 2


def list_patience_s(context: ParallelContext) -> list[float]:
    used = (context.waiting_group, context.checkpoint_group)
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in used]


def test_ranks_wait_hours_for_files() -> None:
    assert run_on_ranks(list_patience_s, 2) == [[6 * 3600.0] * 2] * 2


def test_errors_of_gloo_are_told_from_our_own() -> None:
    closed = RuntimeError(
        "[third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:20625."
    )
    assert is_peer_failure(closed)
    assert not is_peer_failure(RuntimeError("shape mismatch"))
    assert not is_peer_failure(RuntimeError("checkpoint /data/gloo/run/checkpoints/step_1 cannot be read"))
