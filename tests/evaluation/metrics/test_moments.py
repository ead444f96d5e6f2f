import numpy as np
import pytest
import scipy.linalg
import torch
from torch_fidelity.metric_fid import fid_statistics_to_metric

from diffmoe_scale.evaluation.metrics.moments import Gaussian, Moments, frechet_distance


def moments_of(features_NF: torch.Tensor, *, batch: int = 37) -> Moments:
    moments = Moments(features_NF.shape[1])
    for part_BF in features_NF.split(batch):
        moments.update(part_BF)
    return moments


def features(count: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix_FF = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(count, width, generator=generator) @ mix_FF + shift


def test_mean_and_covariance_are_those_of_numpy_over_all_features():
    features_NF = features(500, 24, seed=0, shift=3.0)
    gaussian = moments_of(features_NF).gaussian()
    wide_NF = features_NF.numpy().astype(np.float64)
    assert gaussian.count == 500
    np.testing.assert_allclose(gaussian.mean_F, wide_NF.mean(0), rtol=1e-12)
    np.testing.assert_allclose(gaussian.covariance_FF, np.cov(wide_NF, rowvar=False), rtol=0, atol=1e-12)


def test_the_distance_of_two_gaussians_is_the_closed_form():
    # Of commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2.
    rotation_FF, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
    first_F, second_F = np.linspace(0, 3, 16), np.linspace(2, 1, 16)
    mean_F = np.linspace(-1, 1, 16)

    def gaussian(mean_F: np.ndarray, deviations_F: np.ndarray) -> Gaussian:
        covariance_FF = rotation_FF @ np.diag(deviations_F**2) @ rotation_FF.T
        return Gaussian(torch.from_numpy(mean_F), torch.from_numpy(covariance_FF), 0)

    distance = frechet_distance(gaussian(mean_F, first_F), gaussian(0 * mean_F, second_F))
    assert distance == pytest.approx((mean_F**2).sum() + ((first_F - second_F) ** 2).sum(), abs=1e-6)


@pytest.mark.parametrize("count", [1000, 40])  # 40 pictures: covariances of rank 39
def test_the_distance_is_that_of_torch_fidelity_and_of_scipy(count):
    first, second = (moments_of(features(count, 64, seed, seed / 10)).gaussian() for seed in (1, 2))
    ours = frechet_distance(first, second)
    libraries = fid_statistics_to_metric(
        {"mu": first.mean_F.numpy(), "sigma": first.covariance_FF.numpy()},
        {"mu": second.mean_F.numpy(), "sigma": second.covariance_FF.numpy()},
        verbose=False,
    )["frechet_inception_distance"]
    root_FF = scipy.linalg.sqrtm((first.covariance_FF @ second.covariance_FF).numpy())
    means = float((first.mean_F - second.mean_F).square().sum())
    traces = float(first.covariance_FF.trace() + second.covariance_FF.trace())
    assert ours == pytest.approx(libraries, abs=1e-4)
    assert ours == pytest.approx(means + traces - 2 * root_FF.trace().real, abs=1e-4)


@pytest.mark.parametrize("count", [3000, 100])
def test_the_distance_of_a_set_to_itself_is_nearly_0(count):
    gaussian = moments_of(features(count, 512, seed=3, shift=1.0)).gaussian()
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-3


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="the covariance of 1 picture; expected at least 2"):
        moments_of(features(1, 4, seed=0)).gaussian()
