from typing import Literal

import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.sampling.euler import euler
from diffmoe_scale.sampling.schedule import sampling_times

MEAN, SPREAD = 0.4, 0.3


def _exact_velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[noise - x_0 | x_t] when every pixel of the data is normal(MEAN, SPREAD)."""
    t = t[:, None, None, None]
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    surprise = (x_t - (1 - t) * MEAN) / variance
    return t * surprise - (MEAN + (1 - t) * SPREAD**2 * surprise)


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
def test_euler_on_the_exact_flow_gives_the_data_distribution(
    prediction: Literal["velocity", "sample"],
) -> None:
    objective = build_objective(DiffusionConfig(prediction=prediction, min_time=1e-3))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        velocity = _exact_velocity(x_t, t)
        return velocity if prediction == "velocity" else x_t - t[:, None, None, None] * velocity

    _, noise = sample_noise(0, range(16), (1, 32, 32), torch.device("cpu"))
    x0 = euler(predict, objective, noise, sampling_times(200, end=objective.end_time))
    assert abs(float(x0.mean()) - MEAN) < 0.01 and abs(float(x0.std()) - SPREAD) < 0.01


MIN_TIME = 0.05


@pytest.mark.parametrize("steps", [20, 80, 320, 1280])
def test_finer_steps_come_nearer_to_the_exact_flow_and_leave_no_noise(steps: int) -> None:
    """Of normal data the exact flow takes noise z at 1 to (1 - t) m + sqrt((1 - t)^2 s^2 + t^2) z at t, and
    x_0 is then predicted by E[x_0 | x_t]. Below min_time the network's velocity is another one."""
    objective = build_objective(DiffusionConfig(prediction="sample", min_time=MIN_TIME))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t - t[:, None, None, None] * _exact_velocity(x_t, t)

    _, noise = sample_noise(0, range(4), (1, 8, 8), torch.device("cpu"))
    x0 = euler(predict, objective, noise, sampling_times(steps, end=objective.end_time))
    variance = (1 - MIN_TIME) ** 2 * SPREAD**2 + MIN_TIME**2
    expected = MEAN + SPREAD**2 * (1 - MIN_TIME) * noise / variance**0.5
    error = float((x0 - expected).square().mean().sqrt())
    assert error < 0.5 / steps, error


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
@pytest.mark.parametrize("steps", [20, 300, 1500])
def test_samples_of_two_points_are_these_points_however_fine_the_steps(
    kind: Literal["flow", "ddpm"], steps: int
) -> None:
    """Data of -1 and 1: E[x_0 | x_t] = tanh(signal x_t / level^2)."""
    prediction: Literal["velocity", "sample"] = "sample" if kind == "flow" else "velocity"
    objective = build_objective(DiffusionConfig(kind=kind, prediction=prediction, min_time=MIN_TIME))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal = objective.add_noise(torch.ones_like(x_t), torch.zeros_like(x_t), t)
        level = objective.add_noise(torch.zeros_like(x_t), torch.ones_like(x_t), t)
        assert float(level.min()) > 0, "the network knows no time without noise"
        x_0 = torch.tanh(signal * x_t / level.square())
        if kind == "flow":
            return x_0
        return torch.cat([(x_t - signal * x_0) / level, torch.zeros_like(x_t)], dim=1)

    _, noise = sample_noise(0, range(4), (1, 8, 8), torch.device("cpu"))
    x0 = euler(predict, objective, noise, sampling_times(steps, end=objective.end_time))
    is_clear = noise.abs() > 0.02  # others are drawn to one point only slowly
    torch.testing.assert_close(x0[is_clear], x0[is_clear].sign(), atol=1e-3, rtol=0)


def test_ddim_on_the_exact_noise_of_one_point_finds_the_point() -> None:
    objective = build_objective(DiffusionConfig(kind="ddpm"))
    point = torch.full((2, 1, 4, 4), 0.3)

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal = objective.add_noise(torch.ones_like(x_t), torch.zeros_like(x_t), t)
        level = objective.add_noise(torch.zeros_like(x_t), torch.ones_like(x_t), t)
        return torch.cat([(x_t - signal * point) / level, torch.zeros_like(x_t)], dim=1)

    _, noise = sample_noise(0, range(2), (1, 4, 4), torch.device("cpu"))
    torch.testing.assert_close(
        euler(predict, objective, noise, sampling_times(20, end=objective.end_time)), point, atol=1e-3, rtol=0
    )


def test_fresh_noise_forgets_the_mistakes_of_early_steps() -> None:
    """The prediction of data is wrong by 1 above t = 0.5, and from then on pulled half way to the truth from
    where x_t says it is."""
    objective = build_objective(DiffusionConfig(prediction="sample"))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x_t) if float(t[0]) > 0.5 else x_t / (2 * (1 - t[:, None, None, None]))

    _, noise = sample_noise(0, range(64), (1, 8, 8), torch.device("cpu"))

    def draw(share: float) -> torch.Tensor:
        return euler(
            predict,
            objective,
            noise,
            sampling_times(20, end=objective.end_time),
            fresh_share=share,
            fresh_noise=lambda step: sample_noise(step + 1, range(64), (1, 8, 8), torch.device("cpu"))[1],
        )

    assert torch.equal(
        draw(0.0), euler(predict, objective, noise, sampling_times(20, end=objective.end_time))
    )
    assert float(draw(1.0).mean().abs()) < 0.1 < float(draw(0.0).mean().abs())


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    device = torch.device("cpu")
    times, noise = sample_noise(7, [3, 9, 12], (2, 4), device)
    time_alone, noise_alone = sample_noise(7, [9], (2, 4), device)
    assert torch.equal(noise[1], noise_alone[0]) and times[1] == time_alone[0]
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(
        sample_noise(8, [9], (2, 4), device)[1][0], noise_alone[0]
    )
