"""Training objectives: how data is noised, what the network learns, and what its output says of data and
noise.

Time runs from t = 0 (data) to t = 1 (noise). B samples, C H W image or latents.
"""

from typing import Protocol

from torch import Tensor

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.ddpm import DDPM
from diffmoe_scale.diffusion.flow import Flow


class Objective(Protocol):
    """A pair of a noising path and a loss."""

    @property
    def end_time(self) -> float:
        """The smallest t at which `split` gives the path's own noise: samplers go no further, but to the
        predicted x_0."""

    def output_channels(self, channels: int) -> int:
        """Channels that the network must put out for images of `channels`."""

    def sample_time(self, uniform_B: Tensor) -> Tensor:
        """Training times t_B from uniform random numbers in [0, 1)."""

    def embedding_time(self, t_B: Tensor) -> Tensor:
        """What the network's timestep embedding is given for t."""

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t on the path between data and noise."""

    def levels(self, t: float) -> tuple[float, float]:
        """(signal, level) of the path x_t = signal x_0 + level noise."""

    def loss(
        self, value_BCHW: Tensor, x_t_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """Loss of each sample [B] for the network's output `value`."""

    def split(self, value_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """The (x_0, noise) that the network's output implies at x_t.

        Where the network predicts x_0, the noise is (x_t - x_0) / t + x_0. Below `diffusion.min_time` the
        division is by that instead, and the noise is no longer the flow's: a sampler takes its last step to
        a time of at least min_time and returns the x_0 found there.
        """


def build_objective(config: DiffusionConfig) -> Objective:
    match config.kind:
        case "flow":
            return Flow(config)
        case "ddpm":
            return DDPM()
