from typing import Literal

import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.objective import build_objective


def _batch(seed: int = 0, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1, torch.randn(
        count, 3, 4, 4, generator=generator
    )


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_perfect_flow_prediction_has_no_loss_and_splits_into_data_and_noise(
    prediction: Literal["velocity", "sample"],
) -> None:
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


@pytest.mark.parametrize(("t", "is_exact"), [(0.05, True), (0.3, True), (0.02, False)])
def test_the_noise_of_a_predicted_sample_is_exact_from_min_time_on(t: float, is_exact: bool) -> None:
    flow = build_objective(DiffusionConfig(prediction="sample", min_time=0.05))
    x0, noise = _batch()
    t_B = torch.full((len(x0),), t)
    x_t = flow.add_noise(x0, noise, t_B)
    found_x0, found_noise = flow.split(x0, x_t, t_B)
    assert torch.equal(found_x0, x0)
    # Below, the velocity noise - x_0 is t / min_time of the flow's.
    expected = noise if is_exact else x0 + (noise - x0) * t / 0.05
    torch.testing.assert_close(found_noise, expected, rtol=1e-4, atol=1e-5)
