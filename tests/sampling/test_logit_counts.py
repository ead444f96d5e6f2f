"""Quantiles of the predictors' logits from their counts."""

import math

import numpy as np
import pytest
import torch

from diffmoe_scale.moe.routing import Rule, Selection
from diffmoe_scale.sampling.batch import generate_batch, number_requests
from diffmoe_scale.sampling.logit_counts import HIGHEST, LOWEST, NUM_BINS, LogitCounts
from tests.model.models import EXPERTS
from tests.moe.layers import make_layer
from tests.sampling.models import CPU, PLAIN, SIZE, STEPS, build, config

BIN = (HIGHEST - LOWEST) / NUM_BINS


@pytest.mark.parametrize("seed", range(4))
def test_quantiles_are_those_of_the_logits_themselves(seed: int) -> None:
    counts = LogitCounts([make_layer(layer_index=1), make_layer(layer_index=5)], device=CPU)
    generator = np.random.default_rng(seed)
    logits_LSE = generator.normal(size=(2, 5000, EXPERTS)) * [0.01, 1.0, 3.0, 5.0] + generator.normal()
    for place in range(2):
        for part in np.array_split(logits_LSE[place], 3):
            counts.add(place, torch.from_numpy(part))
    for share in (0.1, 0.5, 0.77, 0.99):
        found = counts.quantiles(share)
        assert sorted(found) == [1, 5]
        for place, block in enumerate((1, 5)):
            exact_E = np.quantile(logits_LSE[place], share, axis=0)
            # Neighbouring logits of a wide spread lie apart in its thin end.
            allowed_E = BIN + (np.quantile(logits_LSE[place], min(1, share + 0.001), axis=0) - exact_E)
            assert (np.abs(found[block].logit().numpy() - exact_E) <= allowed_E + 1e-4).all()
        pooled = np.quantile(logits_LSE, share)
        assert abs(counts.pooled_quantile(share) - pooled) <= 2 * BIN


def test_logits_beyond_the_bins_are_counted_at_the_ends() -> None:
    counts = LogitCounts([make_layer()], device=CPU)
    counts.add(0, torch.tensor([[-1e9, 1e9, 0.0, -30.0], [-math.inf, math.inf, 0.0, -30.0]]))
    assert counts.counts_LEX.sum() == 2 * EXPERTS
    assert counts.counts_LEX[0, 0, 0] == 2 and counts.counts_LEX[0, 1, -1] == 2


@pytest.mark.parametrize("rule", ["static", "threshold", "interval"])
def test_every_token_of_every_call_is_counted_whatever_the_rule(rule: Rule) -> None:
    networks = build(config())
    counts = LogitCounts(networks.denoiser.moe_layers(), device=CPU)
    requests = number_requests([0, 1, 2], seed=0)
    with counts.counting():
        generate_batch(networks, requests, PLAIN, selection=Selection(rule))
    generate_batch(networks, requests, PLAIN)  # not any more
    tokens = (SIZE // 2) ** 2
    assert counts.counts_LEX.sum(dim=-1).tolist() == [[3 * STEPS * tokens] * EXPERTS]
