import pytest
import torch

from diffmoe_scale.evaluation.metrics import rows as module
from diffmoe_scale.evaluation.metrics.rows import Rows


@pytest.mark.parametrize("rows_of_block", [1, 5, 8, 20, 50, 64])
def test_rows_come_in_the_order_of_places_and_can_be_had_twice(monkeypatch, rows_of_block):
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * 4 * rows_of_block)
    features_NF = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    places_N = 2 * torch.randperm(50, generator=torch.Generator().manual_seed(1))
    rows = Rows(3)
    for places_B in places_N.split(8):
        rows.update(features_NF[places_B // 2], places_B)
    assert torch.equal(rows.gather(), features_NF)
    assert torch.equal(rows.gather(), features_NF)
    rows.update(torch.zeros(1, 3), torch.tensor([1]))
    assert torch.equal(rows.gather()[:3], torch.stack([features_NF[0], torch.zeros(3), features_NF[1]]))


def test_one_batch_in_another_order_is_sorted_too():
    rows = Rows(1)
    rows.update(torch.tensor([[1.0], [0.0]]), torch.tensor([1, 0]))
    assert rows.gather().flatten().tolist() == [0.0, 1.0]


def test_no_rows_are_an_empty_array():
    assert Rows(7).gather().shape == (0, 7)
