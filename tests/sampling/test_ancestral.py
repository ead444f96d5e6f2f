"""Random samplers of DDPM: mean and variance of the data."""

import itertools

import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.ddpm import DDPM
from diffmoe_scale.sampling.ancestral import ancestral
from diffmoe_scale.sampling.ddim import ddim
from diffmoe_scale.sampling.schedule import whole_steps
from tests.sampling.gaussian import MEAN, SPREAD, Gaussian, noise


class Learned(Gaussian):
    """With the exact variance of each step: that of the posterior, and what is not known of x_0."""

    def __init__(self, times: list[float]) -> None:
        super().__init__(DiffusionConfig(kind="ddpm"))
        self.next = dict(itertools.pairwise(times))

    def __call__(self, x_t: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        value, t = super().__call__(x_t, t_B), float(t_B[0])
        if t not in self.next:
            return value
        bar, bar_next = (self.objective.levels(time)[0] ** 2 for time in (t, self.next[t]))
        beta = 1 - bar / bar_next
        low = beta * (1 - bar_next) / (1 - bar)
        unknown = SPREAD**2 * (1 - bar) / (bar * SPREAD**2 + 1 - bar)
        exact = low + (beta * bar_next**0.5 / (1 - bar)) ** 2 * unknown
        assert low <= exact <= beta
        channels = x_t.shape[1]
        place = torch.log(torch.tensor(exact / low)) / torch.log(torch.tensor(beta / low))
        return torch.cat([value[:, :channels], torch.full_like(x_t, float(2 * place - 1))], dim=1)


def fresh_noise(step: int) -> torch.Tensor:
    return torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(1000 + step))


@pytest.mark.parametrize("steps", [5, 50, 250])
def test_steps_of_the_learned_variance_give_mean_and_variance_of_the_data(steps: int) -> None:
    """The chain is exact for any number of steps: one is a larger beta."""
    times = whole_steps(steps, of=1000)
    network = Learned(times.tolist())
    x_0 = ancestral(network, network.objective, noise(64, size=32), times, fresh_noise=fresh_noise)
    # Of 65536 pixels; the last step takes the mean of x_0: s^2 less what x_t at 1 / 1000 leaves open, 1e-4.
    assert abs(float(x_0.mean()) - MEAN) < 5 * SPREAD / 256
    assert abs(float(x_0.var()) / SPREAD**2 - 1) < 0.03
    assert len(network.times) == steps


def test_ddim_with_eta_one_gives_mean_and_variance_with_many_steps() -> None:
    network = Gaussian(DiffusionConfig(kind="ddpm"))
    times = whole_steps(500, of=1000)
    x_0 = ddim(network, network.objective, noise(64, size=32), times, eta=1.0, fresh_noise=fresh_noise)
    assert abs(float(x_0.mean()) - MEAN) < 5 * SPREAD / 256
    assert abs(float(x_0.var()) / SPREAD**2 - 1) < 0.05


def test_the_posterior_over_one_step_is_that_of_ddpm() -> None:
    """arXiv 2102.09672 eq. 10 to 15, by its table of betas."""
    objective, step = DDPM(), 400
    t_B, t_next_B = torch.tensor([(step + 1) / 1000]), torch.tensor([step / 1000])
    x_t, value = noise(1), torch.cat([noise(1) * 0.3, torch.full((1, 1, 8, 8), -0.5)], dim=1)
    mean, variance = objective.posterior(value, x_t, t_B, t_next_B)
    beta, bar = float(objective.beta[step]), float(objective.alpha_bar[step])
    bar_before = float(objective.alpha_bar[step - 1])
    x_0 = (x_t - (1 - bar) ** 0.5 * value[:, :1]) / bar**0.5
    expected = bar_before**0.5 * beta / (1 - bar) * x_0
    expected = expected + (1 - beta) ** 0.5 * (1 - bar_before) / (1 - bar) * x_t
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    low = (1 - bar_before) / (1 - bar) * beta
    torch.testing.assert_close(variance, torch.full_like(variance, beta**0.25 * low**0.75), rtol=1e-4, atol=0)
