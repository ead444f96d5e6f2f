"""The root of a run's settings, and the checks that cross sections."""

from dataclasses import dataclass, field
from typing import Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.model import AutoencoderConfig, DiffusionConfig, ModelConfig, MoEConfig, TextConfig
from diffmoe_scale.config.train import (
    BucketConfig,
    CheckpointConfig,
    DataConfig,
    DefenceConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
    TelemetryConfig,
)


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
    """Of fp32 matrix products (torch.set_float32_matmul_precision): `high` allows TF32 on a GPU, `medium` bf16 where the hardware has it."""
    deterministic: bool = True
    """Choose deterministic kernels where torch has them."""

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        require(
            self.global_batch % self.micro_batch == 0, "run.global_batch", self.global_batch, f"a multiple of run.micro_batch ({self.micro_batch})"
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run; RUN/config.yaml holds them resolved and alone starts the run again."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    buckets: BucketConfig = field(default_factory=BucketConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    def __post_init__(self) -> None:
        experts, expert_parallel = self.moe.num_experts, self.parallel.expert_parallel
        require(
            expert_parallel == 1 or (experts > 0 and experts % expert_parallel == 0),
            "moe.num_experts",
            experts,
            f"a multiple of parallel.expert_parallel ({expert_parallel})",
        )
        has_predictor = experts == 0 or self.moe.router == "diffmoe"
        require(
            has_predictor or self.sampling.selection == "static",
            "sampling.selection",
            self.sampling.selection,
            f"'static': moe.router {self.moe.router!r} has no capacity predictor",
        )
        require(
            experts == 0 or self.moe.every <= self.model.depth,
            "moe.every",
            self.moe.every,
            f"at most model.depth ({self.model.depth}), or moe.num_experts=0 for a dense model",
        )
        if self.buckets.enabled:
            size, step = self.model.image_size, self.buckets.step
            require(size % step == 0, "model.image_size", size, f"a multiple of buckets.step ({step})")
            for _, resolution in self.buckets.resolutions:
                require(step <= resolution <= size and resolution % step == 0, "buckets.resolutions", resolution, f"multiples of {step} up to {size}")
        if self.autoencoder.kind == "pixels":
            size, patch = self.model.image_size, self.model.patch_size
            require(size % patch == 0, "model.image_size", size, f"a multiple of model.patch_size ({patch})")
            require(self.model.channels == 3, "model.channels", self.model.channels, "3 for autoencoder.kind 'pixels'")
        require(
            self.optimizer.warmup_steps <= self.run.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"at most run.steps ({self.run.steps})",
        )
        require(
            self.telemetry.validate_every == 0 or bool(self.data.validation),
            "data.validation",
            self.data.validation,
            "shards when telemetry.validate_every is set",
        )
