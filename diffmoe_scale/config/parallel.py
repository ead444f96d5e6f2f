"""Settings of how work is split over ranks."""

from dataclasses import dataclass

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How work is laid over ranks."""

    expert_parallel: int = 1
    """Ranks that share one set of experts; divides the world size and moe.num_experts."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage: 1 shards optimizer state, 2 also gradients."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory."""
    timeout_s: int = 300
    """Seconds after which a collective that a dead or stuck rank left open ends the run."""

    def __post_init__(self) -> None:
        require(self.expert_parallel >= 1, "parallel.expert_parallel", self.expert_parallel, "at least 1")
        require(
            self.zero_stage in (1, 2),
            "parallel.zero_stage",
            self.zero_stage,
            "1 or 2 (DeepSpeed's stage 0 clips by a mean of the ranks' own norms, its stage 3 averages the gradients of different experts)",
        )
        require(self.timeout_s >= 5, "parallel.timeout_s", self.timeout_s, "at least 5")
