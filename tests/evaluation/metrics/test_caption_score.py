import numpy as np
import pytest
import torch

from diffmoe_scale.evaluation.metrics.caption_score import CaptionScore


def test_the_score_is_100_times_the_mean_cosine_with_negative_ones_as_0():
    found = CaptionScore()
    for cosines_B in ([0.2, -0.4], [0.3]):
        found.update(torch.tensor(cosines_B))
    scores = np.array([20.0, 0.0, 30.0])
    assert found.score() == pytest.approx((scores.mean(), scores.std(ddof=1) / 3**0.5), rel=1e-6)
