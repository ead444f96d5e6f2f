"""Settings of the optimizer, its schedule and the weight average."""

from dataclasses import dataclass
from typing import Annotated

from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, name="optimizer", is_free=True):
    """AdamW, its schedule and the weight average."""

    learning_rate: Annotated[float, Range(0, 10, excludes_low=True)] = 1e-4
    """Peak learning rate."""
    router_learning_rate_ratio: Annotated[float, Range(0, 1000)] = 1.0
    """Learning rate of routers and capacity predictors over the peak."""
    beta1: Annotated[float, Range(0, 1, excludes_high=True)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Range(0, 1, excludes_high=True)] = 0.999
    """Decay of the second moment."""
    eps: Annotated[float, Range(0, 1, excludes_low=True)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.0
    """Decoupled weight decay on matrices; norms, biases and embeddings have none."""
    warmup_steps: Annotated[int, Range(0, 10**9)] = 0
    """Steps of linear warm-up."""
    decay_fraction: Annotated[float, Range(0, 1)] = 0.0
    """Last part of the run in which the rate falls linearly to 0."""
    clip_norm: Annotated[float, Range(0, 1e9)] = 1.0
    """Largest global gradient norm, routers and capacity predictors counted in; 0 switches clipping off."""
    ema_decay: Annotated[float, Range(0, 1, excludes_high=True)] = 0.9999
    """Decay of the weight average, per step."""
    ema_warmup: bool = True
    """Use min(decay, (1 + n) / (10 + n)) at step n."""
