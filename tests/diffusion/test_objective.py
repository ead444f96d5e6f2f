import numpy as np
import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.objective import DDPM, build_objective


def _batch(seed: int = 0, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(
        count, 3, 4, 4, generator=generator
    )


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_perfect_flow_prediction_has_no_loss_and_splits_into_data_and_noise(prediction: str) -> None:
    objective = build_objective(DiffusionConfig(prediction=prediction))
    x0, noise = _batch()
    t = torch.linspace(0.1, 1, 6)
    x_t = objective.add_noise(x0, noise, t)
    value = noise - x0 if prediction == "velocity" else x0
    assert objective.loss(value, x_t, x0, noise, t).max() == 0
    found_x0, found_noise = objective.split(value, x_t, t)
    torch.testing.assert_close(found_x0, x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(found_noise, noise, atol=1e-5, rtol=0)


def test_loss_on_the_sample_is_its_mean_squared_error_at_every_time() -> None:
    objective = build_objective(DiffusionConfig(prediction="sample", loss="sample"))
    x0, value, noise = torch.randn(3, 4, 3, 2, 2)
    expected_B = torch.stack([((value[i] - x0[i]) ** 2).sum() / 12 for i in range(4)])
    torch.testing.assert_close(
        objective.loss(value, noise, x0, noise, torch.tensor([0.01, 0.3, 0.6, 1.0])), expected_B
    )


def test_sample_prediction_has_the_velocity_loss_of_the_velocity_it_implies() -> None:
    sample, velocity = (
        build_objective(DiffusionConfig(prediction="sample")),
        build_objective(DiffusionConfig()),
    )
    x0, noise = _batch()
    t = torch.linspace(0.1, 1, 6)
    x_t = sample.add_noise(x0, noise, t)
    wrong_x0 = x0 + 0.1 * noise
    implied_velocity = (x_t - wrong_x0) / t[:, None, None, None]
    torch.testing.assert_close(
        sample.loss(wrong_x0, x_t, x0, noise, t), velocity.loss(implied_velocity, x_t, x0, noise, t)
    )


def test_logit_normal_times_have_the_asked_mean_and_spread() -> None:
    objective = build_objective(DiffusionConfig(time_sampling="logit_normal", logit_mean=-0.5, logit_std=0.8))
    logits = torch.logit(
        objective.sample_time(torch.rand(100_000, generator=torch.Generator().manual_seed(0))).double()
    )
    assert abs(float(logits.mean()) + 0.5) < 0.02 and abs(float(logits.std()) - 0.8) < 0.02


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
