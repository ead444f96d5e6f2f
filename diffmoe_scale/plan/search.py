"""Layouts of a run on a number of GPUs: what each needs and how fast it would be; the fastest that fits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from diffmoe_scale.config.schema import Config
from diffmoe_scale.plan.build import tokens_per_picture
from diffmoe_scale.plan.flops import Flops, count_flops
from diffmoe_scale.plan.frozen import frozen_bytes
from diffmoe_scale.plan.memory import Memory, plan_memory, trace_of
from diffmoe_scale.plan.network import Transfer, plan_transfers
from diffmoe_scale.plan.parameters import ModelSize, count_parameters
from diffmoe_scale.plan.step_time import StepTime, plan_time
from diffmoe_scale.plan.trace import Trace
from diffmoe_scale.plan.trace_line import TraceLine
from diffmoe_scale.telemetry.hardware import GIB, Gpu
from diffmoe_scale.words import counted

RESERVED, FRAGMENTED = 2.5 * GIB, 0.05
"""Kept free: CUDA's context, NCCL and the libraries' workspaces, and a share for gaps between tensors.
Stated, not measured."""
MAX_EXPERT_PARALLEL, MAX_MICRO_BATCH = 64, 64
CHECKPOINTING = ("none", "experts", "blocks")


@dataclass(frozen=True)
class Layout:
    """How a run may be laid over ranks without changing what it learns."""

    expert_parallel: int
    zero_stage: int
    micro_batch: int
    checkpointing: str
    is_offloaded: bool = False

    def __str__(self) -> str:
        words = f"EP {self.expert_parallel}, ZeRO {self.zero_stage}, micro-batch {self.micro_batch}"
        return f"{words}, checkpointing {self.checkpointing}" + ", offload" * self.is_offloaded


@dataclass(frozen=True)
class Plan:
    """A layout's memory and time on each GPU. Times are estimates; `transfers` are bytes of a step."""

    layout: Layout
    memory: Memory
    time: StepTime
    transfers: list[Transfer]
    images_per_s: float
    """Of all GPUs together."""
    mfu: float
    free_bytes: int
    """Bytes that stay free; below 0: that are missing."""

    @property
    def fits(self) -> bool:
        return self.free_bytes >= 0


class Planner:
    """Plans layouts of one config on `ranks` GPUs."""

    def __init__(self, config: Config, *, ranks: int, gpu: Gpu) -> None:
        """Raises: ValueError if the global batch does not split over the GPUs, or networks do not fit."""
        check_batch(config, ranks)
        self.config, self.ranks, self.gpu = config, ranks, gpu
        self.size: ModelSize = count_parameters(config)
        self.frozen = frozen_bytes(config)
        self._flops: dict[int, Flops] = {}

    @property
    def usable(self) -> int:
        """Bytes of a GPU for tensors."""
        return int((1 - FRAGMENTED) * (self.gpu.memory - RESERVED))

    def flops(self, micro_batch: int) -> Flops:
        """Operations with micro-batches of a size; its `recomputed` is of the config's checkpointing."""
        if micro_batch not in self._flops:
            self._flops[micro_batch] = count_flops(self.config, num_samples=micro_batch)
        return self._flops[micro_batch]

    def plan(self, layout: Layout, trace: Trace | None = None) -> Plan:
        """By `trace` or a new one. Raises: ValueError if the layout cannot be run at all."""
        config = apply_layout(self.config, layout)
        check_layout(config, self.ranks)
        trace = trace or trace_of(config)
        memory = plan_memory(config, ranks=self.ranks, is_gpu=True, trace=trace)
        memory = replace(memory, frozen=self.frozen or 0)
        flops = self.flops(layout.micro_batch)
        experts = self.size.by_part.get("experts", 0)
        transfers = plan_transfers(
            config,
            ranks=self.ranks,
            gpu=self.gpu,
            dense=self.size.total - experts,
            experts=experts,
            tokens=layout.micro_batch * tokens_per_picture(config),
            moe_layers=self.size.moe_layers,
            forward_passes=1 if layout.checkpointing == "none" else 2,
        )
        time = plan_time(
            config,
            flops=flops,
            trace=trace,
            transfers=transfers,
            share=self.size.total // self.ranks,
            gpu=self.gpu,
            ranks=self.ranks,
        )
        images_per_s = config.run.global_batch / time.total
        peak = self.gpu.flops["bf16" if config.model.precision == "bf16" else "fp32"]
        return Plan(
            layout=layout,
            memory=memory,
            time=time,
            transfers=transfers,
            images_per_s=images_per_s,
            mfu=flops.model * images_per_s / self.ranks / peak,
            free_bytes=self.usable - memory.total,
        )

    def search(self) -> list[Plan]:
        """All layouts but those with larger micro-batches than one that is too large: the fastest that fits
        first; then those that do not, the smallest lack first. Micro-batches between the smallest and the
        largest lie on the line through them; the first is exact."""
        plans = []
        for layout in families(self.config, self.ranks):
            line = self._line(layout)
            for micro_batch in self._micro_batches() if line else []:
                if line and micro_batch >= line.small_batch:
                    plans.append(self.plan(replace(layout, micro_batch=micro_batch), line.at(micro_batch)))
                    if not plans[-1].fits:
                        break
        plans.sort(key=order_of)
        return sorted([self.plan(plan.layout) for plan in plans[:1]] + plans[1:], key=order_of)

    def _micro_batches(self) -> list[int]:
        return divisors(self.config.run.global_batch // self.ranks, MAX_MICRO_BATCH)

    def _line(self, layout: Layout) -> TraceLine | None:
        """The traces of a layout's micro-batches; None where even the largest has too few tokens for the
        experts."""
        for small in self._micro_batches():
            try:
                large = self._micro_batches()[-1]
                traces = [
                    trace_of(apply_layout(self.config, replace(layout, micro_batch=micro_batch)))
                    for micro_batch in (small, large)
                ]
            except ValueError:
                continue  # fewer tokens than experts, or than one for each
            return TraceLine(traces[0], traces[1], small, large)
        return None


def order_of(plan: Plan) -> tuple[bool, float]:
    """Sorts the best first."""
    return not plan.fits, -plan.images_per_s if plan.fits else -plan.free_bytes


def families(config: Config, ranks: int) -> Iterator[Layout]:
    """Layouts that divide experts and ranks evenly, with micro-batch 1."""
    for expert_parallel in divisors(math.gcd(config.moe.num_experts or 1, ranks), MAX_EXPERT_PARALLEL):
        if config.moe.num_experts or expert_parallel == 1:
            for zero_stage in (1, 2):
                for checkpointing in CHECKPOINTING:
                    yield Layout(expert_parallel, zero_stage, 1, checkpointing)


def divisors(number: int, limit: int) -> list[int]:
    return [divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0]


def apply_layout(config: Config, layout: Layout) -> Config:
    """The config of a layout. Raises: ValueError as the config's own checks."""
    return replace(
        config,
        run=replace(config.run, micro_batch=layout.micro_batch),
        # One of CHECKPOINTING.
        model=replace(config.model, activation_checkpointing=layout.checkpointing),  # type: ignore[arg-type]
        parallel=replace(
            config.parallel,
            expert_parallel=layout.expert_parallel,
            zero_stage=layout.zero_stage,
            offload_optimizer=layout.is_offloaded,
        ),
    )


def layout_of(config: Config) -> Layout:
    """The config's own."""
    return Layout(
        config.parallel.expert_parallel,
        config.parallel.zero_stage,
        config.run.micro_batch,
        config.model.activation_checkpointing,
        config.parallel.offload_optimizer,
    )


def check_batch(config: Config, ranks: int) -> None:
    """Raise ValueError unless every GPU gets equally many samples of a step."""
    batch = config.run.global_batch
    if batch % ranks != 0:
        least = -(-batch // ranks) * ranks
        raise ValueError(
            f"run.global_batch is {batch}, which {ranks} GPUs cannot share evenly; expected a multiple of "
            f"{ranks}: set run.global_batch={least}, or another --gpus"
        )


def check_layout(config: Config, ranks: int) -> None:
    """Raise ValueError unless a config's layout can run on `ranks` GPUs."""
    expert_parallel, micro_batch = config.parallel.expert_parallel, config.run.micro_batch
    if ranks % expert_parallel != 0:
        fitting = divisors(math.gcd(config.moe.num_experts or 1, ranks), MAX_EXPERT_PARALLEL)
        raise ValueError(
            f"--gpus is {ranks} but parallel.expert_parallel is {expert_parallel}; expected a multiple of "
            f"{expert_parallel}: set parallel.expert_parallel to one of {fitting}, or another --gpus"
        )
    share = config.run.global_batch // ranks
    if share % micro_batch != 0:
        raise ValueError(
            f"run.micro_batch is {micro_batch} but each of {ranks} GPUs gets {counted(share, 'sample')} of "
            f"run.global_batch {config.run.global_batch}; expected one of {divisors(share, share)}"
        )
