"""Bytes that a rank sends in a training step, by group, and the time that they take.

Rates: 82 % of the link within a machine (370 of 450 GB/s: NVIDIA, nccl-tests#212), 92 % of a network card (46
of 50 GB/s: nccl-tests#267, #290). A group with r ranks in each machine uses r network cards, and no more than
the link. An all-to-all over machines sends each row over the sender's own card (nccl-tests#130).
"""

from dataclasses import dataclass

from diffmoe_scale.config.schema import Config
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.telemetry.hardware import Gpu

LINK_EFFICIENCY, NIC_EFFICIENCY = 0.82, 0.92
GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Transfer:
    """Bytes that a rank sends in one optimizer step, and the seconds of it."""

    what: str
    group: str
    bytes: float
    seconds: float


def plan_transfers(
    config: Config,
    *,
    ranks: int,
    gpu: Gpu,
    dense: int,
    experts: int,
    tokens: int,
    moe_layers: int,
    forward_passes: int,
) -> list[Transfer]:
    """Of a step on `ranks` GPUs. `dense` and `experts` are parameters of the whole network, `tokens` those of
    a micro-batch of a rank; `forward_passes` is 2 where activation checkpointing repeats the experts."""
    expert_parallel = config.parallel.expert_parallel
    accumulation = config.run.global_batch // (config.run.micro_batch * ranks)
    weight_bytes = NUMBER_FORMATS[config.model.precision].itemsize
    gradient_bytes = NUMBER_FORMATS[config.parallel.gradient_format].itemsize
    reductions = accumulation if config.parallel.zero_stage == 2 else 1
    replicas = ranks // expert_parallel
    owned = experts / expert_parallel
    all_ranks = _group_rate(gpu, ranks, stride=1)
    expert_ranks = _group_rate(gpu, replicas, stride=expert_parallel)
    # DeepSpeed 0.19.8 reduces a bucket by an all-reduce, which sends twice what a reduce-scatter would.
    found = [
        _ring(
            "all-reduce of gradients", "all ranks", 2 * gradient_bytes * dense * reductions, ranks, all_ranks
        ),
        _ring("all-gather of weights", "all ranks", weight_bytes * dense, ranks, all_ranks),
    ]
    if experts:
        name, size = f"replicas of an expert ({replicas})", 2 * gradient_bytes * owned * reductions
        rows = tokens * moe_layers * accumulation * 2 * (forward_passes + 1)
        found += [
            _ring("all-reduce of expert gradients", name, size, replicas, expert_ranks),
            _ring("all-gather of expert weights", name, weight_bytes * owned, replicas, expert_ranks),
            _all_to_all(config, gpu, rows),
        ]
    return [transfer for transfer in found if transfer.bytes]


def group_rates(gpu: Gpu, ranks: int) -> tuple[float, float]:
    """Bytes a second that a rank sends in an all-reduce, and in an all-to-all, over so many GPUs."""
    here = min(ranks, GPUS_PER_MACHINE)
    within, across = (here - 1) / ranks, (ranks - here) / ranks
    seconds = max(within / (gpu.link * LINK_EFFICIENCY), across / (gpu.nic * NIC_EFFICIENCY))
    return _group_rate(gpu, ranks, stride=1), (within + across) / seconds


def _ring(what: str, group: str, size: float, ranks: int, rate: float) -> Transfer:
    sent = size * (ranks - 1) / ranks
    return Transfer(what, group, sent, sent / rate)


def _group_rate(gpu: Gpu, ranks: int, *, stride: int) -> float:
    """Bytes a second of a ring over `ranks` GPUs that lie `stride` apart."""
    link = gpu.link * LINK_EFFICIENCY
    if ranks * stride <= GPUS_PER_MACHINE:
        return link
    in_machine = max(1, GPUS_PER_MACHINE // stride)
    return min(link, in_machine * gpu.nic * NIC_EFFICIENCY)


def _all_to_all(config: Config, gpu: Gpu, rows: int) -> Transfer:
    """Of `rows`, times the experts that each takes: to experts and back, forward and backward."""
    moe, size = config.moe, config.parallel.expert_parallel
    capacity = moe.experts_a_token
    total = rows * capacity * config.model.width * NUMBER_FORMATS[config.model.precision].itemsize
    here = min(size, GPUS_PER_MACHINE)
    within, across = total * (here - 1) / size, total * (size - here) / size
    seconds = max(within / (gpu.link * LINK_EFFICIENCY), across / (gpu.nic * NIC_EFFICIENCY))
    return Transfer("all-to-all of tokens", f"expert parallel ({size})", within + across, seconds)
