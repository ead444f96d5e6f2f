"""Settings of a run: steps and batch, checkpoints, handling of bad steps."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section, name="checkpoint", is_free=True):
    """When checkpoints are written and which are kept."""

    every: Annotated[int, Range(1, 10**9)] = 500
    """Steps between checkpoints; the last step always writes one."""
    keep_last: Annotated[int, Range(1, 10**9)] = 2
    """Newest checkpoints kept."""
    keep_every: Annotated[int, Range(0, 10**9)] = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none."""
    on_write_error: Literal["stop", "continue"] = "stop"
    """What a failed save (a full disk) does to training, at the latest before the next one; earlier
    checkpoints survive either way."""


@dataclass(frozen=True, kw_only=True)
class DefenceConfig(Section, name="defence", is_free=True):
    """When steps are bad, and what the run does about them. A step that is not finite is always bad; if its
    gradient is not, it changes nothing."""

    spike_z_score: Annotated[float, Range(0, 1e9)] = 10.0
    """Robust standard deviations above the steps before that make a step's loss (each sample's over the mean
    of its time bin) a spike; 0 is never."""
    window: Annotated[int, Range(2, 100_000)] = 100
    """Steps that a step's loss is compared with; there is no spike until so many were taken."""
    bad_steps: Annotated[int, Range(1, 10**9)] = 20
    """Bad steps in a row after which the run goes back to its last checkpoint and on with the data behind
    them."""
    max_rollbacks: Annotated[int, Range(0, 10**9)] = 3
    """Times that a run may do so before it stops with an error."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section, name="run", is_free=True):
    """Identity and length of a run."""

    directory: Annotated[str, PATH] = "runs/default"
    """Run directory; a run that stopped continues from its newest complete checkpoint there."""
    initialize_from: Annotated[str, PATH] = ""
    """Weights and thresholds that a new run begins with, its optimizer being new: a run directory, one of its
    `checkpoints/step_N`, or a safetensors export. Not used once the run has a checkpoint."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Source of every random number."""
    steps: Annotated[int, Range(1, 10**9)] = 1000
    """Optimizer steps."""
    global_batch: Annotated[int, Range(1, 10_000_000)] = 64
    """Samples an optimizer step, over all ranks."""
    micro_batch: Annotated[int, Range(1, 10_000_000)] = 32
    """Samples a rank computes at once; the rest of the global batch is accumulated."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of fp32 matrix products (torch.set_float32_matmul_precision): `high` allows TF32 on a GPU, `medium`
    bf16 where the hardware has it."""
    compile: bool = False
    """Compile dense blocks and parts of the others by torch.compile, at their first use (a minute or more,
    and again for the second shape). Losses are the same to round-off."""
    cuda_graph: bool = False
    """On a GPU, record the network's forward and backward as CUDA graphs at the first batch of each shape.
    For micro-batches of known loads: `moe.pool` rank or sample, one expert-parallel rank, no
    checkpointing."""
    deterministic: bool = True
    """Choose deterministic kernels where torch has them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.directory.strip()), "run.directory", self.directory, "the name of a folder")
        require(
            self.global_batch % self.micro_batch == 0,
            "run.global_batch",
            self.global_batch,
            f"a multiple of run.micro_batch ({self.micro_batch})",
        )

    def is_due(self, step: int, every: int) -> bool:
        """What happens every so many steps, and after the last, happens after this one; 0 is never."""
        return every > 0 and (step % every == 0 or step == self.steps)
