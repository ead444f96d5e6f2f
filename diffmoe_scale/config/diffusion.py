"""Settings of the diffusion process: path, prediction, loss, times."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import FREE, Range, Section


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Section, name="diffusion"):
    """The training objective and its clock: t = 0 is data, t = 1 is noise."""

    kind: Literal["flow", "ddpm"] = "flow"
    """`flow`: x_t = (1 - t) x_0 + t noise (DiffMoE eq. 24); `ddpm`: 1000 linear steps with learned sigma."""
    prediction: Literal["velocity", "sample"] = "velocity"
    """What the network outputs under `flow`: the velocity noise - x_0, or x_0 itself."""
    loss: Annotated[Literal["velocity", "sample"], FREE] = "velocity"
    """What the squared error is taken of; `sample`, for prediction `sample`, weighs by t^2 against
    `velocity`: layout before detail."""
    time_sampling: Annotated[Literal["uniform", "logit_normal"], FREE] = "uniform"
    """Distribution of t in training, for `flow`."""
    logit_mean: Annotated[float, Range(-20, 20), FREE] = 0.0
    """Mean of logit(t); negative favours little noise."""
    logit_std: Annotated[float, Range(0, 20, excludes_low=True), FREE] = 1.0
    """Standard deviation of logit(t)."""
    time_scale: Annotated[float, Range(0, 1_000_000, excludes_low=True)] = 1000.0
    """For `flow`: factor on t in [0, 1] before its sinusoidal embedding; the reference implementation's flow
    models use 1."""
    min_time: Annotated[float, Range(0, 1, excludes_low=True, excludes_high=True), FREE] = 0.05
    """Smallest t that a velocity is divided by, for prediction `sample`; samplers end there, on the predicted
    x_0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.loss == "velocity" or self.prediction == "sample",
            "diffusion.loss",
            self.loss,
            "left at 'velocity' unless diffusion.prediction is 'sample'",
        )
        require(
            self.kind == "flow" or self.time_sampling == "uniform",
            "diffusion.time_sampling",
            self.time_sampling,
            "left at 'uniform' for diffusion.kind 'ddpm'",
        )
        require(
            self.kind == "flow" or self.prediction == "velocity",
            "diffusion.prediction",
            self.prediction,
            "left at 'velocity' for diffusion.kind 'ddpm' (it predicts noise and sigma)",
        )
