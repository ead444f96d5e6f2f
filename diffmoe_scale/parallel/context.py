"""Who this process is among its peers: rank, device and process groups. The only place that asks."""

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParallelContext:
    """The place of this process. Dense parameters are replicated over `dp_group`; an expert lives on one rank of
    each `ep_group` and is replicated over `expert_dp_group`."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    dp_group: dist.ProcessGroup
    ep_group: dist.ProcessGroup
    expert_dp_group: dist.ProcessGroup
    megatron_groups: ProcessGroupCollection

    @property
    def expert_parallel(self) -> int:
        return self.ep_group.size()

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def adopt_launcher_variables() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from SLURM's names, or for one process."""
    for name, slurm_name, alone in (("RANK", "SLURM_PROCID", "0"), ("WORLD_SIZE", "SLURM_NTASKS", "1"), ("LOCAL_RANK", "SLURM_LOCALID", "0")):
        # An interactive SLURM shell sets SLURM_NTASKS too; only a step started by srun has SLURM_STEP_ID and a process id.
        in_step = "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
        os.environ.setdefault(name, os.environ[slurm_name] if in_step and slurm_name in os.environ else alone)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if os.environ["WORLD_SIZE"] == "1":
        os.environ.setdefault("MASTER_PORT", "0")
    if "MASTER_PORT" not in os.environ:
        raise RuntimeError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but MASTER_PORT is not set; start through deepspeed, torchrun or a template of launch/slurm")


def initialize(*, expert_parallel: int, timeout_s: int) -> ParallelContext:
    """Join the process group and split it into data-parallel and expert-parallel groups. Collective over the world.

    Once a process: Megatron-Core's groups cannot be made anew without leaking gloo groups.

    Raises: ValueError if `expert_parallel` does not divide the world size.
    """
    adopt_launcher_variables()
    rank, world_size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world_size % expert_parallel != 0:
        divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ValueError(f"parallel.expert_parallel is {expert_parallel} but {world_size} ranks were started; choose one of {divisors} or start a multiple of {expert_parallel} ranks")
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if has_cuda else torch.device("cpu")
    if has_cuda:
        torch.cuda.set_device(device)
    else:
        # deepspeed 0.19.8 compiles its shared-memory collectives at the first start (minutes); only its inference engine uses them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        dist.init_process_group("nccl" if has_cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    parallel_state.initialize_model_parallel(expert_model_parallel_size=expert_parallel, distributed_timeout_minutes=max(1, timeout_s // 60))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    logger.info("rank %d of %d on %s, expert parallel %d", rank, world_size, device, expert_parallel)
    return ParallelContext(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        dp_group=parallel_state.get_data_parallel_group(),
        ep_group=groups.ep,
        expert_dp_group=groups.expt_dp,
        megatron_groups=groups,
    )
