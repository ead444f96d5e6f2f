"""Four ranks against one pass."""

from typing import Any  # what ranks send back

import numpy as np
import pytest
import torch

from diffmoe_scale.config.check import RunError
from diffmoe_scale.evaluation.metrics import rows
from diffmoe_scale.evaluation.metrics.measures import Need
from diffmoe_scale.evaluation.metrics.statistics import PictureStatistics
from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks

NEEDS: list[Need] = ["moments", "spatial_moments", "rows", "splits", "captions"]
WIDTHS = {"pool": 6, "spatial": 5, "logits": 4}
COUNT = 23


def outputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(COUNT, width, generator=generator) for name, width in WIDTHS.items()}
    return found | {"cosines": torch.rand(COUNT, generator=generator)}


def add(statistics: PictureStatistics, places: range) -> None:
    for first in range(0, len(places), 3):
        places_B = torch.tensor(list(places[first : first + 3]))
        statistics.update({name: values[places_B] for name, values in outputs().items()}, places_B)


def describe(statistics: PictureStatistics) -> dict[str, Any]:
    moments, spatial = statistics.moments.gaussian(), statistics.spatial_moments.gaussian()
    return {
        "count": [statistics.count, moments.count, spatial.count],
        "mean": moments.mean_F.numpy(),
        "covariance": moments.covariance_FF.numpy(),
        "spatial mean": spatial.mean_F.numpy(),
        "spatial covariance": spatial.covariance_FF.numpy(),
        "rows": statistics.rows.gather().numpy(),
        "inception score": statistics.splits.score()[0],
        "captions": statistics.captions.score(),
    }


def on_a_rank(context: ParallelContext) -> dict[str, Any] | None:
    rows.BLOCK_BYTES = 4 * 4 * WIDTHS["pool"]  # four rows
    statistics = PictureStatistics(NEEDS, WIDTHS)
    # Rank 2 has no pictures, as with fewer pictures than ranks.
    share = {0: range(0, COUNT, 2), 1: range(1, 9, 2), 2: range(0), 3: range(9, COUNT, 2)}[context.rank]
    add(statistics, share)
    statistics.merge(context.control_group)
    statistics.check_places("all")
    return describe(statistics) if context.rank == 0 else None


def test_merging_four_ranks_is_one_pass():
    alone = PictureStatistics(NEEDS, WIDTHS)
    add(alone, range(COUNT))
    expected = describe(alone)
    merged = run_on_ranks(on_a_rank, 4)[0]
    np.testing.assert_array_equal(merged.pop("rows"), expected.pop("rows"))
    assert list(merged) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(merged[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def test_features_that_are_not_finite_are_named_with_their_picture():
    values = outputs()
    values["spatial"][5, 2] = float("nan")
    with pytest.raises(RunError, match=r"picture 105 has features \(spatial\) that are not finite numbers"):
        PictureStatistics(NEEDS, WIDTHS).update(values, torch.arange(100, 100 + COUNT))


def test_only_what_is_needed_is_collected():
    statistics = PictureStatistics(["moments"], WIDTHS)
    statistics.update({"pool": outputs()["pool"]}, torch.arange(COUNT))
    assert statistics.moments.count == COUNT
    assert not statistics.rows.blocks and statistics.spatial_moments.count == 0
