"""Settings of a run: steps and batch, checkpoints, handling of bad steps."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none."""
    on_write_error: Literal["stop", "continue"] = "stop"
    """What a failed save (a full disk) does to training, at the latest before the next one; earlier
    checkpoints survive either way."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")
        require(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class DefenceConfig:
    """When steps are bad, and what the run does about them. A step that is not finite is always bad; if its
    gradient is not, it changes nothing."""

    spike_z_score: float = 10.0
    """Robust standard deviations above the steps before that make a step's loss (each sample's over the mean
    of its time bin) a spike; 0 is never."""
    window: int = 100
    """Steps that a step's loss is compared with; there is no spike until so many were taken."""
    bad_steps: int = 20
    """Bad steps in a row after which the run goes back to its last checkpoint and on with the data behind
    them."""
    max_rollbacks: int = 3
    """Times that a run may do so before it stops with an error."""

    def __post_init__(self) -> None:
        require(self.spike_z_score >= 0, "defence.spike_z_score", self.spike_z_score, "0 (never) or more")
        require(self.window >= 2, "defence.window", self.window, "at least 2")
        require(self.bad_steps >= 1, "defence.bad_steps", self.bad_steps, "at least 1")
        require(self.max_rollbacks >= 0, "defence.max_rollbacks", self.max_rollbacks, "0 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Identity and length of a run."""

    directory: str = "runs/default"
    """Run directory; a run that stopped continues from its newest complete checkpoint there."""
    seed: int = 0
    """Source of every random number."""
    steps: int = 1000
    """Optimizer steps."""
    global_batch: int = 64
    """Samples an optimizer step, over all ranks."""
    micro_batch: int = 32
    """Samples a rank computes at once; the rest of the global batch is accumulated."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of fp32 matrix products (torch.set_float32_matmul_precision): `high` allows TF32 on a GPU, `medium`
    bf16 where the hardware has it."""
    deterministic: bool = True
    """Choose deterministic kernels where torch has them."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        require(
            self.global_batch % self.micro_batch == 0,
            "run.global_batch",
            self.global_batch,
            f"a multiple of run.micro_batch ({self.micro_batch})",
        )
