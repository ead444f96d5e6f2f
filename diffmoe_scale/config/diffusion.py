"""Settings of the diffusion process: path, prediction, loss, times."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The training objective and its clock: t = 0 is data, t = 1 is noise."""

    kind: Literal["flow", "ddpm"] = "flow"
    """`flow`: x_t = (1 - t) x_0 + t noise (DiffMoE eq. 24); `ddpm`: 1000 linear steps with learned sigma."""
    prediction: Literal["velocity", "sample"] = "velocity"
    """What the network outputs under `flow`: the velocity noise - x_0, or x_0 itself."""
    loss: Literal["velocity", "sample"] = "velocity"
    """What the squared error is taken of; `sample`, for prediction `sample`, weighs by t^2 against
    `velocity`: layout before detail."""
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of t in training, for `flow`."""
    logit_mean: float = 0.0
    """Mean of logit(t); negative favours little noise."""
    logit_std: float = 1.0
    """Standard deviation of logit(t)."""
    time_scale: float = 1000.0
    """For `flow`: factor on t in [0, 1] before its sinusoidal embedding; the reference implementation's flow
    models use 1."""
    min_time: float = 0.05
    """Smallest t that a velocity is divided by, for prediction `sample`; samplers end there, on the predicted
    x_0."""

    def __post_init__(self) -> None:
        require(
            self.loss == "velocity" or self.prediction == "sample",
            "diffusion.loss",
            self.loss,
            "left at 'velocity' unless diffusion.prediction is 'sample'",
        )
        require(self.logit_std > 0, "diffusion.logit_std", self.logit_std, "above 0")
        require(
            self.kind == "flow" or self.time_sampling == "uniform",
            "diffusion.time_sampling",
            self.time_sampling,
            "left at 'uniform' for diffusion.kind 'ddpm'",
        )
        require(0 < self.min_time < 1, "diffusion.min_time", self.min_time, "in (0, 1)")
        require(
            self.kind == "flow" or self.prediction == "velocity",
            "diffusion.prediction",
            self.prediction,
            "left at 'velocity' for diffusion.kind 'ddpm' (it predicts noise and sigma)",
        )
