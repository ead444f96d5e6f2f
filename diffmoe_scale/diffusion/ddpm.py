"""Denoising diffusion with learned sigma.

B samples, C H W image or latents.
"""

import math

import torch
from torch import Tensor


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]


class DDPM:
    """1000 linear steps, predicted noise and learned sigma (improved DDPM, arXiv 2102.09672, as in DiT).

    Step k of 0..999 is t = (k + 1) / 1000; t = 0 is clean data. The network puts out 2 C channels: noise, and
    the place of the log variance between its two bounds.
    """

    num_steps = 1000

    def __init__(self) -> None:
        self.beta = torch.linspace(1e-4, 0.02, self.num_steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - self.beta, 0)
        self.alpha_bar_before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.posterior_variance = self.beta * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)

    @property
    def end_time(self) -> float:
        return 1 / self.num_steps

    def output_channels(self, channels: int) -> int:
        return 2 * channels

    def sample_time(self, uniform_B: Tensor) -> Tensor:
        return ((uniform_B * self.num_steps).floor().clamp(max=self.num_steps - 1) + 1) / self.num_steps

    def embedding_time(self, t_B: Tensor) -> Tensor:
        # Rounded as in `_step`: a sampler may take a number of steps that does not divide 1000.
        return (t_B * self.num_steps).round() - 1

    def _step(self, t_B: Tensor) -> Tensor:
        return (t_B.double() * self.num_steps).round().long().cpu() - 1

    def _signal_and_noise(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])[self._step(t_B) + 1]
        return _per_sample(alpha_bar.sqrt().float().to(t_B.device)), _per_sample(
            (1 - alpha_bar).sqrt().float().to(t_B.device)
        )

    def add_noise(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        signal, noise_level = self._signal_and_noise(t_B)
        return signal * x0_BCHW + noise_level * noise_BCHW

    def levels(self, t: float) -> tuple[float, float]:
        alpha_bar = float(self.alpha_bar[round(t * self.num_steps) - 1]) if t > 0 else 1.0
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def split(self, value_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise_level = self._signal_and_noise(t_B)
        noise = value_BCHW[:, : x_t_BCHW.shape[1]]
        return (x_t_BCHW - noise_level * noise) / signal, noise

    def posterior(
        self, value_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor, t_next_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of x at the smaller time t' given x_t, over any number of steps: the mean for the
        predicted x_0, the variance that the network learned, between those of x_0 known and unknown.

        Over one step these are arXiv 2102.09672 eq. 11 and 15; several are one step of a larger beta.
        """
        table = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
        alpha_bar_B, alpha_bar_next_B = table[self._step(t_B) + 1], table[self._step(t_next_B) + 1]
        beta_B = 1 - alpha_bar_B / alpha_bar_next_B
        low_B = beta_B * (1 - alpha_bar_next_B) / (1 - alpha_bar_B)

        def of_sample(values_B: Tensor) -> Tensor:
            return _per_sample(values_B.float().to(t_B.device))

        x_0, _ = self.split(value_BCHW, x_t_BCHW, t_B)
        place_BCHW = (value_BCHW[:, x_t_BCHW.shape[1] :] + 1) / 2
        variance = torch.lerp(of_sample(low_B.log()), of_sample(beta_B.log()), place_BCHW).exp()
        mean = of_sample(beta_B * alpha_bar_next_B.sqrt() / (1 - alpha_bar_B)) * x_0
        kept_B = (1 - alpha_bar_next_B) * (1 - beta_B).sqrt() / (1 - alpha_bar_B)
        return mean + of_sample(kept_B) * x_t_BCHW, variance

    def loss(
        self, value_BCHW: Tensor, x_t_BCHW: Tensor, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        predicted_noise, variance_place = value_BCHW.chunk(2, dim=1)
        simple_B = (predicted_noise - noise_BCHW).square().mean(dim=(1, 2, 3))
        # The variational term trains sigma alone: the mean it is computed from gets no gradient.
        return simple_B + self._variational_bound(
            predicted_noise.detach(), variance_place, x_t_BCHW, x0_BCHW, t_B
        )

    def _variational_bound(
        self, noise_BCHW: Tensor, place_BCHW: Tensor, x_t_BCHW: Tensor, x0_BCHW: Tensor, t_B: Tensor
    ) -> Tensor:
        """Bits per dimension: KL to the true posterior, at the first step the likelihood of 8-bit pixels
        (arXiv 2102.09672 eq. 4-7, 15)."""
        step = self._step(t_B)

        def at_step(table: Tensor) -> Tensor:
            return _per_sample(table[step].float().to(t_B.device))

        # The posterior variance is 0 at the first step; its log is replaced by that of the second.
        log_low = at_step(torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log())
        log_high = at_step(self.beta.log())
        log_variance = torch.lerp(log_low, log_high, (place_BCHW + 1) / 2)
        weight_x0 = at_step(self.beta * self.alpha_bar_before.sqrt() / (1 - self.alpha_bar))
        weight_x_t = at_step((1 - self.alpha_bar_before) * (1 - self.beta).sqrt() / (1 - self.alpha_bar))
        predicted_x0, _ = self.split(noise_BCHW, x_t_BCHW, t_B)
        true_mean = weight_x0 * x0_BCHW + weight_x_t * x_t_BCHW
        mean = weight_x0 * predicted_x0 + weight_x_t * x_t_BCHW
        divergence = 0.5 * (
            log_variance
            - log_low
            - 1
            + (log_low - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
        )
        decoder = -_discretized_log_likelihood(x0_BCHW, mean, 0.5 * log_variance)
        bound_B = torch.where(
            (step == 0).to(t_B.device), decoder.mean(dim=(1, 2, 3)), divergence.mean(dim=(1, 2, 3))
        )
        return bound_B / math.log(2.0)


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit values in [-1, 1] under a normal distribution (arXiv 2006.11239 eq. 13)."""
    inverse_scale = (-log_scale).exp()
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse_scale)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse_scale)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()
