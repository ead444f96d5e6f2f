"""Rectified flow.

B samples, C H W image or latents.
"""

import torch
from torch import Tensor

from diffmoe_scale.config.diffusion import DiffusionConfig


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]


class Flow:
    """Rectified flow: x_t = (1 - t) x_0 + t noise, velocity noise - x_0 (DiffMoE eq. 24)."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config

    @property
    def end_time(self) -> float:
        return self.config.min_time if self.config.prediction == "sample" else 0.0

    def output_channels(self, channels: int) -> int:
        return channels

    def sample_time(self, uniform_B: Tensor) -> Tensor:
        if self.config.time_sampling == "uniform":
            return uniform_B
        # Kept off 0 and 1, where the logit is infinite.
        normal_B = torch.special.ndtri(uniform_B.double().clamp(1e-6, 1 - 1e-6))
        return torch.sigmoid(self.config.logit_mean + self.config.logit_std * normal_B).float()

    def embedding_time(self, t_B: Tensor) -> Tensor:
        return self.config.time_scale * t_B

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return torch.lerp(x0_BCHW, noise_BCHW, _per_sample(t_B))

    def levels(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def loss(
        self, value_BCHW: Tensor, x_t_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        if self.config.prediction == "velocity":
            return (value_BCHW - (noise_BCHW - x0_BCHW)).square().mean(dim=(1, 2, 3))
        if self.config.loss == "sample":
            return (value_BCHW - x0_BCHW).square().mean(dim=(1, 2, 3))
        # The velocity of a predicted sample is (x_t - x_0) / t, so its error is the sample's over t (JiT,
        # arXiv 2511.13720).
        return (value_BCHW - x0_BCHW).square().mean(dim=(1, 2, 3)) / t_B.clamp(
            min=self.config.min_time
        ).square()

    def split(self, value_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Exact from `min_time` on. Below it, a predicted sample's x_0 is still exact, but its noise is that
        of a velocity held down by t / min_time."""
        if self.config.prediction == "velocity":
            return x_t_BCHW - _per_sample(t_B) * value_BCHW, x_t_BCHW + _per_sample(1 - t_B) * value_BCHW
        velocity = (x_t_BCHW - value_BCHW) / _per_sample(t_B.clamp(min=self.config.min_time))
        return value_BCHW, value_BCHW + velocity
