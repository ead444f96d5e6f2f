import numpy as np
import torch

from diffmoe_scale.diffusion.objective import DDPM


def _batch(seed: int = 0, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(
        count, 3, 4, 4, generator=generator
    )


def test_ddpm_time_covers_all_thousand_steps_and_the_embedding_sees_their_numbers() -> None:
    objective = DDPM()
    t = objective.sample_time(torch.arange(1000) / 1000 + 1e-4)
    np.testing.assert_allclose(objective.embedding_time(t).numpy(), np.arange(1000), atol=1e-3)


def test_ddpm_perfect_noise_splits_into_data() -> None:
    objective = DDPM()
    x0, noise = _batch()
    t = torch.tensor([1, 10, 100, 300, 500, 800]) / 1000
    x_t = objective.add_noise(x0, noise, t)
    found_x0, _ = objective.split(torch.cat([noise, torch.zeros_like(noise)], 1), x_t, t)
    torch.testing.assert_close(found_x0, x0, atol=1e-3, rtol=0)


def test_ddpm_bound_is_the_divergence_of_two_normals() -> None:
    """With the mean exact and the variance at its upper bound beta, KL(posterior || model) in closed form."""
    objective = DDPM()
    x0, noise = _batch()
    step = torch.tensor([1, 10, 100, 300, 500, 999])
    t = (step + 1) / 1000
    x_t = objective.add_noise(x0, noise, t)
    loss = objective.loss(torch.cat([noise, torch.ones_like(noise)], 1), x_t, x0, noise, t)
    beta, posterior = objective.beta[step], objective.posterior_variance[step]
    expected = 0.5 * (beta.log() - posterior.log() - 1 + posterior / beta) / np.log(2)
    torch.testing.assert_close(loss.double(), expected, atol=2e-3, rtol=1e-2)


def test_ddpm_sigma_gets_gradient_from_the_bound_and_the_noise_only_from_the_simple_loss() -> None:
    objective = DDPM()
    x0, noise = _batch()
    t = torch.full((6,), 0.5)
    value = torch.zeros(6, 6, 4, 4, requires_grad=True)
    objective.loss(value, objective.add_noise(x0, noise, t), x0, noise, t).sum().backward()
    assert value.grad is not None
    torch.testing.assert_close(value.grad[:, :3], -2 * noise / (3 * 4 * 4))
    assert value.grad[:, 3:].abs().min() > 0
