"""The device of this process, its threads and its memory."""

import ctypes
import os
import platform
from pathlib import Path

import deepspeed
import torch

from diffmoe_scale.parallel.launcher import local_size

# malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1
OLD_MMAP_LIMIT = 32 * 2**20
"""Old releases of glibc refuse a larger threshold."""


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
