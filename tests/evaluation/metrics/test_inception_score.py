import numpy as np
import pytest
import torch

from diffmoe_scale.evaluation.metrics import inception_score
from diffmoe_scale.evaluation.metrics.inception_score import InceptionScore


def test_the_score_is_that_of_adm_over_parts_in_the_order_of_places(monkeypatch):
    monkeypatch.setattr(inception_score, "SPLIT", 50)
    logits_NC = 3 * torch.randn(120, 9, generator=torch.Generator().manual_seed(0))
    found = InceptionScore()
    for places_B in torch.from_numpy(np.random.default_rng(0).permutation(120)).split(17):
        found.update(logits_NC[places_B], places_B)
    # ADM's evaluator, compute_inception_score.
    preds = logits_NC.double().softmax(1).numpy()
    scores = []
    for i in range(0, len(preds), 50):
        part = preds[i : i + 50]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    assert len(scores) == 3
    assert found.score() == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_equal_pictures_score_1_and_sure_different_ones_the_number_of_classes():
    """One part has no deviation."""
    found = InceptionScore()
    found.update(torch.zeros(6, 4), torch.arange(6))
    value, error = found.score()
    assert value == pytest.approx(1.0) and error is None
    found = InceptionScore()
    found.update(1000 * torch.eye(4), torch.arange(4))
    value, error = found.score()
    assert value == pytest.approx(4.0) and error is None
