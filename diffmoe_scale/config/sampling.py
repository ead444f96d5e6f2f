"""Settings of sampling."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.section import Range, Section


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section, name="sampling", is_free=True):
    """How pictures are drawn from the model."""

    steps: Annotated[int, Range(1, 10_000)] = 20
    """Euler steps from noise to data."""
    guidance: Annotated[float, Range(-100, 1000)] = 3.0
    """Classifier-free guidance scale; 1 is none."""
    guidance_end: Annotated[float, Range(0, 1)] = 0.0
    """Guidance is off at times t below this."""
    fresh_noise: Annotated[float, Range(0, 1)] = 0.0
    """Share of the predicted noise that each step draws anew: 0 is deterministic, 1 (few steps) mends what
    early steps got wrong."""
    selection: Literal["threshold", "threshold_count", "interval", "static"] = "threshold"
    """How experts choose: predictor over threshold (DiffMoE eq. 14), its count by gate score (reference
    code), predictor over gamma, or top K."""
    gamma: Annotated[float, Range(0, 1)] = 0.5
    """The constant threshold of `interval`."""
    batch: Annotated[int, Range(1, 65_536)] = 64
    """Images drawn at once."""
    height: Annotated[int, Range(0, 16_384)] = 0
    """Of the pictures, in pixels; 0 is model.image_size."""
    width: Annotated[int, Range(0, 16_384)] = 0
    """Of the pictures, in pixels; 0 is model.image_size."""
