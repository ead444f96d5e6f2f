"""Settings of sampling."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


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
    """Share of the predicted noise that each step draws anew: 0 is deterministic, 1 (few steps) mends what
    early steps got wrong."""
    selection: Literal["threshold", "threshold_count", "interval", "static"] = "threshold"
    """How experts choose: predictor over threshold (DiffMoE eq. 14), its count by gate score (reference
    code), predictor over gamma, or top K."""
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
            require(
                getattr(self, name) >= 0,
                f"sampling.{name}",
                getattr(self, name),
                "0 (model.image_size) or more",
            )
        require(0 <= self.gamma <= 1, "sampling.gamma", self.gamma, "in [0, 1]")
