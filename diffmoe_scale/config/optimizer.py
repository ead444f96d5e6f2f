"""Settings of the optimizer, its schedule and the weight average."""

from dataclasses import dataclass

from diffmoe_scale.config.check import require


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
