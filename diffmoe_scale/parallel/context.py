"""Who this process is among its peers: rank, device and process groups."""

import ctypes
import logging
import os
import platform
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from diffmoe_scale.parallel.launcher import adopt_launcher_variables, local_size
from diffmoe_scale.parallel.peers import share_hosts
from diffmoe_scale.parallel.waiting import LONGEST_WORK
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
OLD_MMAP_LIMIT = 32 * 2**20
"""Old releases of glibc refuse a larger threshold."""


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
    hosts: tuple[str, ...]
    """Of each rank."""

    @property
    def expert_parallel(self) -> int:
        return self.ep_group.size()

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def share_cores(local_rank: int) -> None:
    """Give each process of this machine its share of the cores, where neither the user nor the launcher did.

    deepspeed sets no OMP_NUM_THREADS, so that every rank would take all cores; torchrun sets it to 1 unless
    it is set. Without a GPU a process is also held on its cores: ranks that wait for each other many times a
    step lose a tenth and more of their time when they move.
    """
    ranks = local_size()
    if "OMP_NUM_THREADS" in os.environ or ranks == 1:
        return
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    cores = sorted(os.sched_getaffinity(0), key=_place_of_core)
    share = len(cores) // ranks
    if share > 0 and not torch.cuda.is_available():
        os.sched_setaffinity(0, cores[local_rank * share : (local_rank + 1) * share])


def _place_of_core(core: int) -> tuple[int, int, int]:
    """Sorts the hardware threads of one core side by side."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    package, within = (
        int((topology / name).read_text()) if (topology / name).is_file() else 0
        for name in ("physical_package_id", "core_id")
    )
    return package, within, core


def keep_freed_memory() -> None:
    """Have glibc's malloc keep what tensors gave back: by default it returns it to the kernel, and each step
    pays anew for the first touch of every page (5 to 10 % of a small model's step on a CPU)."""
    if platform.libc_ver()[0] == "glibc":
        malloc = ctypes.CDLL(None)
        malloc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        malloc.mallopt(M_MMAP_THRESHOLD, OLD_MMAP_LIMIT)
        malloc.mallopt(M_MMAP_THRESHOLD, LARGEST_INT)


def choose_device(local_rank: int) -> torch.device:
    """The GPU of this rank, or the CPU where torch sees no GPU.

    Raises: ValueError if there are fewer GPUs than ranks on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ValueError(
            f"local rank {local_rank} sees {num_gpus} GPU(s); start at most one rank a GPU, "
            "and let every rank see all GPUs of its machine (srun --gpu-bind=none)"
        )
    return torch.device("cuda", local_rank)


def initialize(*, expert_parallel: int, timeout_s: int) -> ParallelContext:
    """Join the process group and split it into data-parallel and expert-parallel groups. Collective over the
    world.

    Once a process: Megatron-Core's groups cannot be made anew without leaking gloo groups.

    Raises: ValueError if the launcher's variables or `expert_parallel` do not fit, RuntimeError if the ranks
    do not meet within `timeout_s`.
    """
    rank = adopt_launcher_variables()
    world_size, local_rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    check_world(world_size, expert_parallel=expert_parallel)
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
        # A rank whose disk is slow ends nothing: a dead rank is noticed at once, a hung one by the others.
        waiting_group=_gloo_group(max(LONGEST_WORK, timeout)),
        checkpoint_group=_gloo_group(max(LONGEST_WORK, timeout)),
        megatron_groups=collection,
        hosts=share_hosts(control_group),
    )
    logger.info(
        "%s, expert parallel %d, rank %d on %s with %s",
        counted(world_size, "rank"),
        expert_parallel,
        rank,
        device,
        counted(torch.get_num_threads(), "thread"),
    )
    return context


def prepare_device(local_rank: int) -> torch.device:
    """Choose this rank's device and set up the process for it. Raises: ValueError, as `choose_device`."""
    share_cores(local_rank)
    device = choose_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        # deepspeed 0.19.8 compiles its shared-memory collectives at the first start (minutes); only its
        # inference engine uses them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return device


def meet(backend: str, timeout: timedelta) -> None:
    """Join the process group of the world. Collective over the world.

    Raises: ValueError if the port is taken, RuntimeError if the ranks do not meet within `timeout`.
    """
    try:
        dist.init_process_group(backend, timeout=timeout)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ValueError(
            f"port {os.environ['MASTER_PORT']} is in use, by another run perhaps; choose another with "
            "the launcher's --master_port, DEEPSPEED_ARGS='--master_port PORT' of the bash form, or "
            "MASTER_PORT"
        ) from error


def check_world(world_size: int, *, expert_parallel: int) -> None:
    """Raises: ValueError unless experts can be spread over so many ranks."""
    if world_size % expert_parallel != 0:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(
            f"parallel.expert_parallel is {expert_parallel} but the world has {counted(world_size, 'rank')}; "
            f"choose one of {divisors} or start ranks in multiples of {expert_parallel}"
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


def _gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    """All ranks on gloo. Collective over the world."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
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
        isinstance(error, RuntimeError) and "/gloo/" in str(error)
    )
