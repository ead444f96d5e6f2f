"""All of DiT's protocol from features, against ADM's evaluator written out in numpy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.metrics import inception_score
from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.compute import compute_values
from diffmoe_scale.evaluation.metrics.measures import parse_measures
from diffmoe_scale.evaluation.metrics.reference import Reference
from diffmoe_scale.evaluation.metrics.statistics import PictureStatistics
from tests.evaluation.metrics.test_fidelity import adm_precision_recall

NAMES = ["fid", "sfid", "is", "precision", "recall", "kid"]
WIDTHS: Mapping[str, int] = {"pool": 4, "spatial": 3, "logits": 5}


class Unused:
    widths = WIDTHS

    def __call__(
        self, pictures_BCHW: torch.Tensor, captions: Sequence[str] | None
    ) -> dict[str, torch.Tensor]:
        raise AssertionError


def draw(count: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, width, generator=generator) for name, width in WIDTHS.items()}


def statistics_of(features: dict[str, torch.Tensor]) -> PictureStatistics:
    found = PictureStatistics(["moments", "spatial_moments", "rows", "splits"], WIDTHS)
    for places_B in torch.arange(len(features["pool"])).split(7):
        found.update({name: values[places_B] for name, values in features.items()}, places_B)
    return found


def values_of(samples: PictureStatistics, reference: PictureStatistics, names: list[str]) -> dict[str, float]:
    held = Reference(
        path=Path("reference.npz"),
        fingerprint="1" * 16,
        gaussians={
            "moments": reference.moments.gaussian(),
            "spatial_moments": reference.spatial_moments.gaussian(),
        },
        rows_MF=reference.rows.gather(),
        counts=dict.fromkeys(("moments", "spatial_moments", "rows"), reference.count),
    )
    backbone = Backbone("inception", "0" * 16, "none", Unused(), torch.device("cpu"))
    measures, config = parse_measures(names), MetricsConfig(kid_subsets=3)
    found = compute_values(
        measures, {"inception": samples}, {"inception": backbone}, {"inception": held}, config
    )
    return {value.name: value.value for value in found}


def adm_frechet(first_NF: torch.Tensor, second_MF: torch.Tensor) -> float:
    mu1, mu2 = (values.double().numpy().mean(0) for values in (first_NF, second_MF))
    sigma1, sigma2 = (np.cov(values.double().numpy(), rowvar=False) for values in (first_NF, second_MF))
    covmean = scipy.linalg.sqrtm(sigma1.dot(sigma2)).real
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(covmean))


def adm_inception_score(logits_NC: torch.Tensor, split: int) -> float:
    preds, scores = logits_NC.double().softmax(1).numpy(), []
    for i in range(0, len(preds), split):
        part = preds[i : i + split]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    return float(np.mean(scores))


def test_the_protocol_of_dit_is_that_of_adms_evaluator(monkeypatch):
    monkeypatch.setattr(inception_score, "SPLIT", 20)
    samples, reference = draw(50, 0), draw(40, 1)
    found = values_of(statistics_of(samples), statistics_of(reference), NAMES)
    precision, recall = adm_precision_recall(reference["pool"].numpy(), samples["pool"].numpy())
    assert list(found) == NAMES
    assert found["fid"] == pytest.approx(adm_frechet(samples["pool"], reference["pool"]), abs=1e-4)
    assert found["sfid"] == pytest.approx(adm_frechet(samples["spatial"], reference["spatial"]), abs=1e-4)
    assert found["is"] == pytest.approx(adm_inception_score(samples["logits"], 20), rel=1e-6)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall))


def test_neighbours_need_four_pictures():
    with pytest.raises(
        ValueError, match="the 3 nearest pictures of 3; expected at least 4, of the samples and"
    ):
        values_of(statistics_of(draw(50, 0)), statistics_of(draw(3, 1)), ["recall"])
    assert set(values_of(statistics_of(draw(4, 0)), statistics_of(draw(4, 1)), NAMES)) == set(NAMES)
