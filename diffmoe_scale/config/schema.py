"""The root of a run's settings, and the checks that cross sections."""

from dataclasses import dataclass, field

from diffmoe_scale.config.alarms import AlarmsConfig
from diffmoe_scale.config.alignment import AlignmentConfig
from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.check import require
from diffmoe_scale.config.data import BucketConfig, DataConfig
from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.config.optimizer import OptimizerConfig
from diffmoe_scale.config.parallel import ParallelConfig
from diffmoe_scale.config.run import CheckpointConfig, DefenceConfig, RunConfig
from diffmoe_scale.config.sampling import SamplingConfig, check_capacity, check_guidance, check_sampler
from diffmoe_scale.config.telemetry import TelemetryConfig
from diffmoe_scale.config.text import TextConfig


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
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    @property
    def expert_blocks(self) -> list[int]:
        """The numbers of the blocks with experts, from 0."""
        return self.moe.blocks(self.model.depth)

    def __post_init__(self) -> None:
        self._check_text()
        experts, expert_parallel = self.moe.num_experts, self.parallel.expert_parallel
        require(
            expert_parallel == 1 or (experts > 0 and experts % expert_parallel == 0),
            "moe.num_experts",
            experts,
            f"a multiple of parallel.expert_parallel ({expert_parallel})",
        )
        rules = self.moe.rules
        require(
            experts == 0 or self.sampling.selection in rules,
            "sampling.selection",
            self.sampling.selection,
            f"{' or '.join(map(repr, rules))}: moe.router {self.moe.router!r} has no capacity predictor",
        )
        check_capacity(self.sampling, self.moe)
        check_sampler(self.sampling, self.diffusion.kind)
        check_guidance(self.sampling, self.model.channels)
        require(
            experts == 0 or self.moe.every <= self.model.depth,
            "moe.every",
            self.moe.every,
            f"at most model.depth ({self.model.depth}), or moe.num_experts=0 for a dense model",
        )
        last_turn = self.model.depth // self.moe.every * self.moe.every
        require(
            experts == 0 or self.moe.first_dense < last_turn,
            "moe.first_dense",
            self.moe.first_dense,
            f"below {last_turn}, the last block with experts by moe.every and model.depth, or "
            "moe.num_experts=0 for a dense model",
        )
        require(
            not self.alignment.encoder or self.alignment.block <= self.model.depth,
            "alignment.block",
            self.alignment.block,
            f"at most model.depth ({self.model.depth})",
        )
        self._check_sequence_parallel()
        self._check_capacity_by_resolution()
        if self.buckets.enabled:
            size, step = self.model.image_size, self.buckets.step
            require(size % step == 0, "model.image_size", size, f"a multiple of buckets.step ({step})")
            for _, resolution in self.buckets.resolutions:
                require(
                    step <= resolution <= size and resolution % step == 0,
                    "buckets.resolutions",
                    resolution,
                    f"multiples of {step} up to {size}",
                )
        self._check_pixels()
        self._check_telemetry()

    def _check_pixels(self) -> None:
        if self.autoencoder.kind == "pixels":
            size, patch = self.model.image_size, self.model.patch_size
            require(size % patch == 0, "model.image_size", size, f"a multiple of model.patch_size ({patch})")
            require(
                self.model.channels == 3,
                "model.channels",
                self.model.channels,
                "3 for autoencoder.kind 'pixels'",
            )

    def _check_telemetry(self) -> None:
        require(
            self.telemetry.validate_every == 0 or bool(self.data.validation),
            "data.validation",
            self.data.validation,
            "shards when telemetry.validate_every is set",
        )
        require(
            self.telemetry.metrics_every == 0 or bool(self.metrics.names),
            "metrics.names",
            self.metrics.names,
            "metrics such as [fid] when telemetry.metrics_every is set",
        )

    def _check_sequence_parallel(self) -> None:
        ranks, heads, moe = self.parallel.sequence_parallel, self.model.heads, self.moe
        if ranks == 1:
            return
        name = "parallel.sequence_parallel"
        require(heads % ranks == 0, name, ranks, f"a divisor of model.heads ({heads})")
        for setting in ("compile", "cuda_graph"):
            require(not getattr(self.run, setting), name, ranks, f"1 with run.{setting}")
        require(
            moe.pool != "expert_parallel" or self.parallel.expert_parallel % ranks == 0,
            name,
            ranks,
            f"a divisor of parallel.expert_parallel ({self.parallel.expert_parallel}), whose ranks share the "
            "pools of moe.pool 'expert_parallel'",
        )
        # Its loss compares means over the tokens of a rank.
        is_contrastive = moe.num_experts > 0 and moe.router == "promoe" and moe.contrastive_weight > 0
        require(not is_contrastive, name, ranks, "1 with moe.router 'promoe' and its moe.contrastive_weight")

    def _check_capacity_by_resolution(self) -> None:
        """Each pair is for a resolution that is trained."""
        trained = [resolution for _, resolution in self.buckets.resolutions] or [self.model.image_size]
        below = 0
        for largest, _ in self.moe.capacity_by_resolution:
            require(
                largest < self.model.image_size
                and any(below < resolution <= largest for resolution in trained),
                "moe.capacity_by_resolution",
                self.moe.capacity_by_resolution,
                f"resolutions of buckets.resolutions ({sorted(set(trained))}) below model.image_size "
                f"({self.model.image_size}), whose capacity is moe.capacity",
            )
            below = largest

    def _check_text(self) -> None:
        is_class, encoders = self.model.conditioning == "class", self.text.encoders
        require(
            not (is_class and encoders),
            "text.encoders",
            [encoder.kind for encoder in encoders],
            "none: with model.conditioning 'class' no text is read",
        )
        require(
            len(encoders) <= 1 or self.model.text_projection,
            "model.text_projection",
            self.model.text_projection,
            f"true: text.encoders has {len(encoders)} encoders, which are projected to one width",
        )
