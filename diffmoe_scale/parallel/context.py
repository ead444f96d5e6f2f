"""Who this process is among its peers: rank and process groups."""

import logging
import os
import re
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from diffmoe_scale.parallel.connections import end_silent_connections
from diffmoe_scale.parallel.device import prepare_device
from diffmoe_scale.parallel.launcher import adopt_launcher_variables
from diffmoe_scale.parallel.peers import share_hosts
from diffmoe_scale.parallel.waiting import LONGEST_WORK
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

GLOO_SOURCE = re.compile(r"/gloo/[^\s\]]*\.(?:cc|h):\d+")
"""Not a run's directory of such a name."""


@dataclass(frozen=True)
class ParallelContext:
    """The place of this process. Dense parameters are replicated over `dp_group`; an expert lives on one rank
    of each `ep_group` and is replicated over `expert_dp_group`. `control_group` is all ranks on gloo, for
    Python objects. Two more of that kind are patient with slow disks (LONGEST_WORK): `waiting_group`, and
    `checkpoint_group` for the thread that writes checkpoints."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    dp_group: dist.ProcessGroup
    ep_group: dist.ProcessGroup
    expert_dp_group: dist.ProcessGroup
    control_group: dist.ProcessGroup
    waiting_group: dist.ProcessGroup
    checkpoint_group: dist.ProcessGroup
    megatron_groups: ProcessGroupCollection
    sequence_group: dist.ProcessGroup | None
    """Ranks that train on the same samples, each with a part of their tokens; None where each has its own."""
    hosts: tuple[str, ...]
    """Of each rank."""

    @property
    def expert_parallel(self) -> int:
        return self.ep_group.size()

    @property
    def data_rank(self) -> int:
        """The place of this rank's training samples among those of all ranks."""
        return self.rank // self.sequence_parallel

    @property
    def data_ranks(self) -> int:
        """How many ranks, or groups of them, train on samples of their own."""
        return self.world_size // self.sequence_parallel

    @property
    def sequence_parallel(self) -> int:
        return 1 if self.sequence_group is None else self.sequence_group.size()

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def initialize(*, expert_parallel: int, timeout_s: int, sequence_parallel: int = 1) -> ParallelContext:
    """Join the process group and split it into data-parallel and expert-parallel groups. Collective over the
    world.

    Once a process: Megatron-Core's groups cannot be made anew without leaking gloo groups.

    Raises: ValueError if the launcher's variables or `expert_parallel` do not fit, ConnectionError if the
    ranks do not meet within `timeout_s`.
    """
    rank = adopt_launcher_variables()
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    check_world(world_size, expert_parallel=expert_parallel, sequence_parallel=sequence_parallel)
    device = prepare_device(local_rank)
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        meet("nccl" if device.type == "cuda" else "gloo", timeout)
    split_world(expert_parallel, timeout)
    collection = ProcessGroupCollection.use_mpu_process_groups()
    control_group = _gloo_group(timeout)
    context = ParallelContext(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        dp_group=parallel_state.get_data_parallel_group(),
        ep_group=collection.ep,
        expert_dp_group=collection.expt_dp,
        control_group=control_group,
        waiting_group=_patient_group(timeout),
        checkpoint_group=_patient_group(timeout),
        megatron_groups=collection,
        sequence_group=_sequence_group(rank, world_size, sequence_parallel, timeout),
        hosts=share_hosts(control_group),
    )
    end_silent_connections(timeout)  # all groups are made
    logger.info(
        "%s, expert parallel %d, rank %d on %s with %s",
        counted(world_size, "rank"),
        expert_parallel,
        rank,
        device,
        counted(torch.get_num_threads(), "thread"),
    )
    return context


def meet(backend: str, timeout: timedelta) -> None:
    """Join the process group of the world. Collective over the world.

    Raises: ValueError if the port is taken, ConnectionError if the ranks do not meet within `timeout`.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        end_silent_connections(timeout)  # the store's: the ranks wait there for each other
        dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        if "EADDRINUSE" in str(error):
            raise ValueError(
                f"port {port} is in use, by another run perhaps; choose another with "
                "the launcher's --master_port, DEEPSPEED_ARGS='--master_port PORT' of the bash form, or "
                "MASTER_PORT"
            ) from error
        ranks = counted(int(os.environ["WORLD_SIZE"]), "rank")
        raise ConnectionError(
            f"{ranks} did not meet at {address}:{port} within "
            f"{timeout.total_seconds():.0f} s ({str(error).splitlines()[0]}); look whether all were started "
            "and reach that port (bash launch/doctor.sh)"
        ) from error


def check_world(world_size: int, *, expert_parallel: int, sequence_parallel: int = 1) -> None:
    """Raises: ValueError unless experts, and the tokens of a sample, can be spread over so many ranks."""
    for name, size in (("expert_parallel", expert_parallel), ("sequence_parallel", sequence_parallel)):
        if world_size % size != 0:
            divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
            raise ValueError(
                f"parallel.{name} is {size} but the world has {counted(world_size, 'rank')}; "
                f"choose one of {divisors} or start ranks in multiples of {size}"
            )


def split_world(expert_parallel: int, timeout: timedelta) -> None:
    """Make Megatron-Core's groups, and have DeepSpeed use them. Collective over the world."""
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    # Megatron makes a timedelta of these minutes, which takes fractions of one.
    parallel_state.initialize_model_parallel(
        expert_model_parallel_size=expert_parallel,
        distributed_timeout_minutes=timeout.total_seconds() / 60,
    )
    # DeepSpeed would clone the world with torch's own time-out, 10 to 30 minutes, and reduce gradients over
    # the clone.
    groups._WORLD_GROUP = parallel_state.get_data_parallel_group()


def _sequence_group(rank: int, world_size: int, size: int, timeout: timedelta) -> dist.ProcessGroup | None:
    """The ranks beside this one, `size` in all. Collective over the world."""
    if size == 1:
        return None
    groups = [
        dist.new_group(list(range(first, first + size)), timeout=timeout)
        for first in range(0, world_size, size)
    ]
    mine = groups[rank // size]
    assert isinstance(mine, dist.ProcessGroup), "this rank is a member"
    return mine


def _gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    """All ranks on gloo. Collective over the world."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


def _patient_group(timeout: timedelta) -> dist.ProcessGroup:
    """All ranks on gloo, which meet within `timeout` and then wait for each other up to LONGEST_WORK: a rank
    whose disk is slow ends nothing. One that died is noticed at once, a host that went silent after
    `timeout`. Collective over the world."""
    group = _gloo_group(timeout)
    dist.set_timeout(max(LONGEST_WORK, timeout), group)
    return group


def finalize() -> None:
    """Leave the process group after work that ended well. Collective over the world."""
    dist.destroy_process_group()


def is_peer_failure(error: Exception) -> bool:
    """True if a collective broke because another rank died, hung or cannot be reached.

    gloo reports a dead peer at once and a hung one after its time-out, as a plain RuntimeError that names
    gloo's source file. Under NCCL a kernel waits on the GPU; its watchdog ends the process after the time-out
    with lines of its own, and few errors come here.
    """
    return isinstance(error, dist.DistBackendError) or (
        isinstance(error, RuntimeError) and GLOO_SOURCE.search(str(error)) is not None
    )
