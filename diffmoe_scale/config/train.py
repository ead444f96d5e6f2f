"""Settings of a run: data, optimizer, parallelism, checkpoints, self-defence, sampling, telemetry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One of several data sets that are mixed."""

    shards: tuple[str, ...]
    """WebDataset tar shards, as in `data.train`."""
    weight: float
    """Samples of this data set over those of all, times the sum of the weights."""

    def __post_init__(self) -> None:
        require(0 < self.weight < math.inf, "weight (of an entry of data.train)", self.weight, "above 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are read."""

    train: tuple[str | DatasetConfig, ...] = ()
    """WebDataset tar shards: paths, globs, brace lists, URLs or 'pipe:COMMAND'; or data sets to mix, each {shards: [...], weight: 1}."""
    validation: tuple[str, ...] = ()
    """Shards of the held-out samples; empty switches validation off."""
    shuffle_block: int = 64
    """Shards that are shuffled together."""
    workers: int = 0
    """Reading processes a rank; 0 reads in the training process."""
    index_folder: str = ""
    """Folder for the indexes of shards that lie in a read-only folder; empty keeps those in memory, made anew at each start."""
    cache_folder: str = ""
    """Folder on each machine for copies of shards that are URLs; may be emptied at any time, and must be when what a URL gives has changed."""
    cache_gib: float = 100.0
    """Disk space of those copies; the ones unused for longest leave first. Holds at least two blocks of `shuffle_block` shards."""
    fetch_attempts: int = 6
    """Attempts at copying a shard, 1, 2, 4, ... seconds apart, before its samples count as unusable."""
    stall_timeout_s: float = 60.0
    """Seconds without a byte after which such a transfer is broken off."""
    prefetch: int = 2
    """Micro-batches that each reading process prepares in advance."""
    caption_weights: Mapping[str, float] = field(default_factory=lambda: {"txt": 1.0, "caption": 0.0})
    """How often a caption is drawn from each source: `txt` is the member .txt, other names are fields of the .json; 0: where no other has one."""
    caption_dropout: float = 0.1
    """Probability of training on the empty caption (or null class), for guidance."""
    horizontal_flip: bool = False
    """Mirror half of the images; wrong for captions with 'left' and 'right'."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB that shows through transparent pixels."""
    max_bad_fraction: float = 0.05
    """Share of a rank's samples that may be unusable (no picture, no label) before the run stops."""

    def __post_init__(self) -> None:
        require(self.shuffle_block >= 1, "data.shuffle_block", self.shuffle_block, "at least 1")
        require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")
        require(self.cache_gib > 0, "data.cache_gib", self.cache_gib, "above 0")
        require(self.fetch_attempts >= 1, "data.fetch_attempts", self.fetch_attempts, "at least 1")
        require(self.stall_timeout_s > 0, "data.stall_timeout_s", self.stall_timeout_s, "above 0")
        are_named = [isinstance(entry, DatasetConfig) for entry in self.train]
        require(all(are_named) or not any(are_named), "data.train", self.train, "patterns alone, or {shards, weight} entries alone")
        weights = self.caption_weights.values()
        require(
            bool(weights) and all(0 <= weight < math.inf for weight in weights),
            "data.caption_weights",
            dict(self.caption_weights),
            "sources with weights of 0 or more",
        )
        require(0 <= self.caption_dropout < 1, "data.caption_dropout", self.caption_dropout, "in [0, 1)")
        require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        require(all(0 <= value <= 255 for value in self.background), "data.background", self.background, "three values in 0..255")


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Images of many shapes, each batch of one."""

    enabled: bool = False
    """Give each image the aspect ratio of `aspects` that is nearest to its own; otherwise all are cut to squares."""
    aspects: tuple[float, ...] = (0.5, 0.5625, 0.6667, 0.75, 0.8, 1.0, 1.25, 1.3333, 1.5, 1.7778, 2.0)
    """Width over height of each bucket, rising; an image beyond the ends is cut more."""
    step: int = 16
    """Sides are multiples of this many pixels; itself a multiple of model.patch_size times the factor of the autoencoder."""
    constant_tokens: bool = True
    """More images a batch where they are smaller than the square of model.image_size, so that steps have about equally many tokens."""
    resolutions: tuple[tuple[int, int], ...] = ()
    """Pairs of a first step (from 1) and a resolution: the pixels of its square are the most that an image has; empty is model.image_size."""

    def __post_init__(self) -> None:
        require(
            bool(self.aspects) and self.aspects[0] > 0 and all(low < high for low, high in zip(self.aspects, self.aspects[1:], strict=False)),
            "buckets.aspects",
            self.aspects,
            "rising numbers above 0, width over height, for example [0.75, 1.0, 1.3333]",
        )
        require(
            len({f"{aspect:g}" for aspect in self.aspects}) == len(self.aspects) <= 255, "buckets.aspects", self.aspects, "at most 255 that differ"
        )
        require(self.step >= 1, "buckets.step", self.step, "at least 1")
        firsts = [first for first, _ in self.resolutions]
        require(
            not firsts or (firsts[0] == 1 and firsts == sorted(set(firsts))), "buckets.resolutions", self.resolutions, "first steps that rise from 1"
        )
        require(self.enabled or not self.resolutions, "buckets.resolutions", self.resolutions, "empty unless buckets.enabled is set")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and the weight average."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    router_learning_rate_ratio: float = 1.0
    """Learning rate of routers and capacity predictors over the peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices; norms, biases and embeddings have none."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    decay_fraction: float = 0.0
    """Last part of the run in which the rate falls linearly to 0."""
    clip_norm: float = 1.0
    """Largest global gradient norm, routers and capacity predictors counted in; 0 switches clipping off."""
    ema_decay: float = 0.9999
    """Decay of the weight average, per step."""
    ema_warmup: bool = True
    """Use min(decay, (1 + n) / (10 + n)) at step n."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "above 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(0 <= self.decay_fraction <= 1, "optimizer.decay_fraction", self.decay_fraction, "in [0, 1]")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 (off) or more")
        require(0 <= self.ema_decay < 1, "optimizer.ema_decay", self.ema_decay, "in [0, 1)")


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
    """What a failed save (a full disk) does to training, at the latest before the next one; earlier checkpoints survive either way."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "at least 1")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")
        require(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "0 (off) or more")


@dataclass(frozen=True, kw_only=True)
class DefenceConfig:
    """When steps are bad, and what the run does about them. A step that is not finite is always bad; if its gradient is not, it changes nothing."""

    spike_z_score: float = 10.0
    """Robust standard deviations above the steps before that make a step's loss (each sample's over the mean of its time bin) a spike; 0 is never."""
    window: int = 100
    """Steps that a step's loss is compared with; there is no spike until so many were taken."""
    bad_steps: int = 20
    """Bad steps in a row after which the run goes back to its last checkpoint and on with the data behind them."""
    max_rollbacks: int = 3
    """Times that a run may do so before it stops with an error."""

    def __post_init__(self) -> None:
        require(self.spike_z_score >= 0, "defence.spike_z_score", self.spike_z_score, "0 (never) or more")
        require(self.window >= 2, "defence.window", self.window, "at least 2")
        require(self.bad_steps >= 1, "defence.bad_steps", self.bad_steps, "at least 1")
        require(self.max_rollbacks >= 0, "defence.max_rollbacks", self.max_rollbacks, "0 or more")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn from the model."""

    steps: int = 20
    """Euler steps from noise to data."""
    guidance: float = 3.0
    """Classifier-free guidance scale; 1 is none."""
    guidance_end: float = 0.0
    """Guidance is off at times t below this."""
    fresh_noise: float = 0.0
    """Share of the predicted noise that each step draws anew: 0 is deterministic, 1 (few steps) mends what early steps got wrong."""
    selection: Literal["threshold", "threshold_count", "interval", "static"] = "threshold"
    """How experts choose: predictor over threshold (DiffMoE eq. 14), its count by gate score (reference code), predictor over gamma, or top K."""
    gamma: float = 0.5
    """The constant threshold of `interval`."""
    batch: int = 64
    """Images drawn at once."""
    height: int = 0
    """Of the pictures, in pixels; 0 is model.image_size."""
    width: int = 0
    """Of the pictures, in pixels; 0 is model.image_size."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "sampling.steps", self.steps, "at least 1")
        require(self.batch >= 1, "sampling.batch", self.batch, "at least 1")
        require(0 <= self.fresh_noise <= 1, "sampling.fresh_noise", self.fresh_noise, "in [0, 1]")
        for name in ("height", "width"):
            require(getattr(self, name) >= 0, f"sampling.{name}", getattr(self, name), "0 (model.image_size) or more")
        require(0 <= self.gamma <= 1, "sampling.gamma", self.gamma, "in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """What a run reports, and where to."""

    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 0
    """Steps between validation losses; 0 is never."""
    validation_samples: int = 256
    """Samples of one validation."""
    sample_every: int = 0
    """Steps between sample grids; 0 is never."""
    sample_prompts: tuple[str, ...] = ()
    """Captions of the sample grids; empty takes the first validation captions."""
    tensorboard: bool = True
    """Write TensorBoard events into RUN/tensorboard."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases; `offline` writes into RUN/wandb."""
    wandb_project: str = "diffmoe_scale"
    """Project name on Weights & Biases."""

    def __post_init__(self) -> None:
        require(self.log_every >= 1, "telemetry.log_every", self.log_every, "at least 1")
        require(self.validation_samples >= 1, "telemetry.validation_samples", self.validation_samples, "at least 1")
        require(self.validate_every >= 0, "telemetry.validate_every", self.validate_every, "0 (never) or more")
        require(self.sample_every >= 0, "telemetry.sample_every", self.sample_every, "0 (never) or more")
