"""Settings of the optimizer, its schedule and the weight average."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section, name="optimizer", is_free=True):
    """AdamW or Muon, the schedule and the weight average."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw` for all weights; `muon` for the matrices of hidden layers and AdamW for the rest: routers,
    embeddings, first and last layers, biases."""
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
    """Largest global gradient norm, routers counted in and capacity predictors not, which thus never change
    the diffusion model; 0 switches clipping off."""
    ema_decay: Annotated[float, Range(0, 1, excludes_high=True)] = 0.9999
    """Decay of the weight average, per step."""
    ema_warmup: bool = True
    """Use min(decay, (1 + n) / (10 + n)) at step n."""
    ema2_decay: Annotated[float, Range(0, 1, excludes_high=True)] = 0.0
    """Decay of a second weight average beside the first, for `--weights ema2`; 0 keeps none."""
    muon_learning_rate_ratio: Annotated[float, Range(0, 1000, excludes_low=True)] = 1.0
    """Learning rate of Muon's matrices over the peak."""
    muon_scale: Literal["rms", "spectral"] = "rms"
    """Length of Muon's steps: `rms` as long as AdamW's, so that its rate and weight decay serve; `spectral`
    moves a layer's output as far at every width, so that a rate found on a narrow model serves a wide one."""
    muon_momentum: Annotated[float, Range(0, 1, excludes_high=True)] = 0.95
    """Decay of Muon's momentum, which is Nesterov's."""
    muon_precision: Literal["bf16", "fp32"] = "bf16"
    """Number format in which Muon makes matrices orthogonal; `fp32` is slower, obeys run.matmul_precision and
    takes the same steps on any number of ranks to 1e-5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            if field.name.startswith("muon_") and self.kind != "muon":
                value = getattr(self, field.name)
                expected = f"{field.default!r} unless optimizer.kind is 'muon'"
                require(value == field.default, f"optimizer.{field.name}", value, expected)
