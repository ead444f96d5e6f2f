import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from diffmoe_scale.evaluation.metrics import mmd
from diffmoe_scale.evaluation.metrics.mmd import cmmd, kernel_distance


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) + shift


def test_kid_is_that_of_torch_fidelity():
    first_NF, second_MF = features(300, 0), features(260, 1, 0.3)
    mean, deviation = kernel_distance(first_NF, second_MF, subsets=20, size=100)
    library = kid_features_to_metric(
        first_NF.double(), second_MF.double(), kid_subsets=20, kid_subset_size=100, verbose=False
    )
    assert mean == pytest.approx(library["kernel_inception_distance_mean"], abs=1e-12)
    assert deviation == pytest.approx(library["kernel_inception_distance_std"], abs=1e-12)


def test_kid_of_two_single_points_by_hand():
    # Twice the same x and twice the same y: k(x, x) + k(y, y) - 2 k(x, y) with k = (x y / 2 + 1)^3.
    first_NF, second_MF = torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0, 2.0]] * 2)
    assert kernel_distance(first_NF, second_MF, subsets=3, size=2) == (1.5**3 + 3.0**3 - 2.0, 0.0)


def test_cmmd_is_the_formula_of_its_paper(monkeypatch):
    monkeypatch.setattr(mmd, "BLOCK", 7)
    first_NF, second_MF = features(30, 0).numpy(), features(20, 1, 1.0).numpy()
    x_NF = first_NF / np.linalg.norm(first_NF, axis=1, keepdims=True)
    y_MF = second_MF / np.linalg.norm(second_MF, axis=1, keepdims=True)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[np.exp(-np.sum((u - v) ** 2) / 200) for v in b] for u in a]))

    expected = 1000 * (mean_kernel(x_NF, x_NF) + mean_kernel(y_MF, y_MF) - 2 * mean_kernel(x_NF, y_MF))
    assert cmmd(torch.from_numpy(first_NF), torch.from_numpy(second_MF)) == pytest.approx(expected, rel=1e-4)
    assert cmmd(torch.from_numpy(first_NF), torch.from_numpy(first_NF)) == pytest.approx(0.0, abs=1e-9)
