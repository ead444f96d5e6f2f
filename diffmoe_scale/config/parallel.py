"""Settings of how work is split over ranks."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section, name="parallel", is_free=True):
    """How work is laid over ranks."""

    expert_parallel: Annotated[int, Range(1, 4096)] = 1
    """Ranks that share one set of experts; divides the world size and moe.num_experts."""
    sequence_parallel: Annotated[int, Range(1, 64)] = 1
    """Ranks that train on the same samples, each with a part of their tokens (Ulysses); divides the world
    size, model.heads and the tokens of an image. run.micro_batch counts the samples of such a group."""
    zero_stage: Annotated[int, Range(0, 3)] = 1
    """DeepSpeed ZeRO stage: 1 shards optimizer state, 2 also gradients."""
    gradient_format: Literal["fp32", "bf16"] = "fp32"
    """Of gradients on their way between ranks, where they are added up. `bf16` sends half the bytes and
    rounds them to 8 bits; micro-batches of a rank are added up in fp32 all the same."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory."""
    timeout_s: Annotated[int, Range(5, 86_400)] = 300
    """Seconds after which a collective that a dead or stuck rank left open ends the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.zero_stage in (1, 2),
            "parallel.zero_stage",
            self.zero_stage,
            "1 or 2 (DeepSpeed's stage 0 clips by a mean of the ranks' own norms, its stage 3 averages the "
            "gradients of different experts)",
        )
