from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.data.reading.batch import Batch, to_unit_range
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.transformer import Prediction
from diffmoe_scale.moe.routing import Routing, Selection
from diffmoe_scale.train.loss import StepLoss, denoising_loss
from tests.data.samples import pixels_of
from tests.train.runs import tiny_batch, tiny_config

COUNT = 6
OBJECTIVE = build_objective(DiffusionConfig())


def routing(**aux_losses: float) -> Routing:
    nothing = torch.zeros(0, 0)
    return Routing(
        nothing.bool(),
        nothing,
        aux_losses={name: torch.tensor(value, requires_grad=True) for name, value in aux_losses.items()},
    )


def loss_of(batch: Batch, routings: list[Routing] | None = None) -> StepLoss:
    """Of a network that predicts no velocity at all."""

    def predict(x_BCHW: Tensor, *_: object) -> Prediction:
        return Prediction(torch.zeros_like(x_BCHW), routings or [])

    return denoising_loss(
        predict,
        OBJECTIVE,
        batch,
        to_unit_range(pixels_of(batch)),
        Condition(),
        seed=3,
        selection=Selection(),
    )


def sample_losses(batch: Batch) -> tuple[list[float], list[float]]:
    """Each sample's mean square of the velocity noise - data, and its time."""
    images_BCHW = to_unit_range(pixels_of(batch))
    time_B, noise_BCHW = sample_noise(3, batch.indices_B.tolist(), images_BCHW.shape[1:], torch.device("cpu"))
    losses = [
        float((noise - image).square().mean()) for noise, image in zip(noise_BCHW, images_BCHW, strict=True)
    ]
    return losses, time_B.tolist()


def test_loss_is_the_mean_over_samples() -> None:
    batch = tiny_batch(0, COUNT, config=tiny_config([]))
    assert np.isclose(float(loss_of(batch).total), np.mean(sample_losses(batch)[0]), rtol=1e-6)


def test_noise_and_time_come_from_the_sample_wherever_it_is_computed() -> None:
    config = tiny_config([])
    parts = [float(loss_of(tiny_batch(first, 2, config=config)).total) for first in (0, 2, 4)]
    assert np.isclose(float(loss_of(tiny_batch(0, COUNT, config=config)).total), np.mean(parts), rtol=1e-6)


def test_failed_samples_add_nothing_and_keep_their_place_in_the_mean() -> None:
    batch = replace(tiny_batch(0, COUNT, config=tiny_config([])), weight_B=torch.tensor([1.0, 0, 1, 1, 0, 1]))
    losses, _ = sample_losses(batch)
    assert np.isclose(
        float(loss_of(batch).total), (losses[0] + losses[2] + losses[3] + losses[5]) / COUNT, rtol=1e-6
    )


def test_losses_of_the_routers_are_averaged_over_layers_and_added() -> None:
    batch = tiny_batch(0, COUNT, config=tiny_config([]))
    loss = loss_of(batch, [routing(predictor=0.5, balance=1.0), routing(predictor=0.1, balance=3.0)])
    assert np.isclose(float(loss.parts["loss/predictor"]), 0.3) and np.isclose(
        float(loss.parts["loss/balance"]), 2.0
    )
    assert np.isclose(float(loss.total.detach()), float(loss_of(batch).total) + 2.3, rtol=1e-6)
    assert loss.total.requires_grad and not any(part.requires_grad for part in loss.parts.values())


def test_tenths_of_the_time_hold_the_sums_and_counts_of_usable_samples() -> None:
    weights = [1.0] * 30 + [0.0] * 10
    batch = replace(tiny_batch(0, 40, config=tiny_config([])), weight_B=torch.tensor(weights))
    sums, counts = np.zeros(10), np.zeros(10)
    for loss, time, weight in zip(*sample_losses(batch), weights, strict=True):
        sums[int(10 * time)] += weight * loss
        counts[int(10 * time)] += weight
    parts = loss_of(batch).parts
    np.testing.assert_allclose(parts["time_bin_sum"], sums, rtol=1e-5)
    np.testing.assert_array_equal(parts["time_bin_count"], counts)


def test_sample_that_is_not_finite_makes_the_loss_so_and_does_not_reach_the_network() -> None:
    batch = tiny_batch(0, COUNT, config=tiny_config([]))
    images_BCHW = to_unit_range(pixels_of(batch))
    images_BCHW[1, 2, 3, 4], images_BCHW[4, 0, 0, 0] = float("nan"), float("inf")
    scale = torch.ones((), requires_grad=True)

    def predict(x_BCHW: Tensor, *_: object) -> Prediction:
        assert x_BCHW.isfinite().all()
        return Prediction(scale * x_BCHW, [])

    loss = denoising_loss(predict, OBJECTIVE, batch, images_BCHW, Condition(), seed=3, selection=Selection())
    loss.total.backward()
    assert loss.total.isnan() and scale.grad is not None and scale.grad.isnan()
    assert loss.parts["sample_loss_B"].isnan().tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize(("scale", "is_skipped"), [(1.0, False), (1e25, True)])
def test_a_loss_that_overflows_has_no_finite_gradient_to_step_by(scale: float, is_skipped: bool) -> None:
    batch, weight = tiny_batch(0, COUNT, config=tiny_config([])), torch.ones((), requires_grad=True)

    def predict(x_BCHW: Tensor, *_: object) -> Prediction:
        return Prediction(scale * weight * torch.ones_like(x_BCHW), [])

    loss = denoising_loss(
        predict,
        OBJECTIVE,
        batch,
        to_unit_range(pixels_of(batch)),
        Condition(),
        seed=3,
        selection=Selection(),
    )
    loss.total.backward()
    assert weight.grad is not None
    assert bool(loss.total.isnan()) == is_skipped and bool(weight.grad.isnan()) == is_skipped
