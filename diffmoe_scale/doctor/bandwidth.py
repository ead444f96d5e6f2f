"""How fast the GPUs of all nodes send to each other; of nodes without GPUs one process each. Needs torch.

Run by the doctor on every node at the same time, with the node's number.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from diffmoe_scale.doctor.facts import node_name
from diffmoe_scale.doctor.judge import Finding
from diffmoe_scale.doctor.reach import ANSWER
from diffmoe_scale.words import counted

if TYPE_CHECKING:
    import torch

GPU_BYTES, CPU_BYTES = 256 * 2**20, 8 * 2**20
"""That a rank puts into a collective."""
REPEATS = 5
MEETING = timedelta(seconds=60)
LEAST_SHARE = 0.5
"""Of what the planner assumes, and of the median of the nodes."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """GB/s that a rank sends, by the planner's count: of an all-reduce twice the bytes but its own share."""

    ranks: int
    ranks_a_node: int
    gpu: str
    """torch's name of it; "" of a CPU."""
    all_reduce: float
    all_to_all: float
    from_first: dict[str, float]
    """From the first node to each of the others."""


def measure(head: str, *, port: int, nodes: int, node: int) -> None:
    """Print the speeds on node 0. Collective over the nodes. Raises: RuntimeError if they do not meet."""
    import torch
    import torch.multiprocessing

    here = max(1, torch.cuda.device_count())
    arguments = (head, port, nodes, node, here)
    torch.multiprocessing.spawn(_rank_main, arguments, nprocs=here)


def _rank_main(local_rank: int, head: str, port: int, nodes: int, node: int, here: int) -> None:
    import torch
    import torch.distributed as dist

    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    rank, ranks = node * here + local_rank, nodes * here
    # Of the usual variables nothing is taken: torchrun or a scheduler may have set them otherwise.
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        init_method=f"tcp://{head}:{port}",
        rank=rank,
        world_size=ranks,
        timeout=MEETING,
    )
    hosts: list[str] = [""] * ranks
    dist.all_gather_object(hosts, node_name() if nodes > 1 else socket.gethostname())
    size = GPU_BYTES if has_gpu else CPU_BYTES
    data = torch.ones(size // 4 // ranks * ranks, device=device)
    others = torch.empty_like(data)
    sent = data.nbytes * (ranks - 1) / ranks
    speeds = Speeds(
        ranks=ranks,
        ranks_a_node=here,
        gpu=torch.cuda.get_device_name(device) if has_gpu else "",
        all_reduce=2 * sent / 1e9 / _seconds(lambda: dist.all_reduce(data), device),
        all_to_all=sent / 1e9 / _seconds(lambda: dist.all_to_all_single(others, data), device),
        from_first={hosts[to]: _send_rate(data, rank, to, device) for to in range(here, ranks, here)},
    )
    if rank == 0:
        print(ANSWER + json.dumps(asdict(speeds)), flush=True)
    dist.destroy_process_group()


def _send_rate(data: "torch.Tensor", rank: int, to: int, device: "torch.device") -> float:
    """GB/s from rank 0 to another. Collective over all ranks."""
    import torch.distributed as dist

    def send() -> None:
        if rank == 0:
            dist.send(data, to)
        elif rank == to:
            dist.recv(data, 0)

    return data.nbytes / 1e9 / _seconds(send, device)


def _seconds(work: Callable[[], object], device: "torch.device") -> float:
    """Of one call in the mean, after one that sets connections up; the end is that of the last rank."""
    work()
    _meet(device)
    started = time.perf_counter()
    for _ in range(REPEATS):
        work()
    _meet(device)
    return (time.perf_counter() - started) / REPEATS


def _meet(device: "torch.device") -> None:
    import torch
    import torch.distributed as dist

    dist.barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def number_of_node() -> int:
    """In a SLURM step of one task a node."""
    return int(os.environ["SLURM_PROCID"])


def describe(speeds: Speeds) -> str:
    what = counted(speeds.ranks, "GPU" if speeds.gpu else "process")
    return (
        f"between {what}: all-reduce {speeds.all_reduce:.3g} GB/s, all-to-all {speeds.all_to_all:.3g} GB/s; "
        + assumption(speeds)
    )


def assumption(speeds: Speeds) -> str:
    """What the planner assumes."""
    rates = assumed_rates(speeds)
    if rates is None:
        return "the planner assumes nothing for them"
    return f"the planner assumes {rates[0]:.3g} and {rates[1]:.3g}"


def assumed_rates(speeds: Speeds) -> tuple[float, float] | None:
    """GB/s of all-reduce and all-to-all; None without GPUs, or for ones the planner does not know."""
    from diffmoe_scale.plan.network import group_rates
    from diffmoe_scale.telemetry.hardware import find_gpu

    gpu = find_gpu(speeds.gpu) if speeds.gpu else None
    if gpu is None:
        return None
    all_reduce, all_to_all = group_rates(gpu, speeds.ranks)
    return all_reduce / 1e9, all_to_all / 1e9


def judge_speeds(speeds: Speeds) -> Iterator[Finding]:
    """What is slower than planned, and the nodes that are slower than the others."""
    rates = assumed_rates(speeds)
    measured = (speeds.all_reduce, speeds.all_to_all)
    for what, found, assumed in zip(("all-reduce", "all-to-all"), measured, rates or (0.0, 0.0), strict=True):
        if found < LEAST_SHARE * assumed:
            yield Finding(
                "all nodes",
                f"{what} reaches {found:.3g} GB/s, the planner assumes {assumed:.3g}",
                "look which network NCCL takes (NCCL_DEBUG=INFO), set NCCL_SOCKET_IFNAME or NCCL_IB_HCA, "
                "and compare nvidia-smi topo -m of the nodes",
            )
    yield from _slow_nodes(speeds.from_first)


def _slow_nodes(speeds: dict[str, float]) -> Iterator[Finding]:
    usual = median(speeds.values()) if speeds else 0.0
    for host, speed in speeds.items():
        if speed < LEAST_SHARE * usual:
            yield Finding(
                host,
                f"gets {speed:.3g} GB/s from the first node, the others {usual:.3g}",
                "look at its network card, cable and switch",
            )
