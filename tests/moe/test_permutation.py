import pytest
import torch
from torch import Tensor

from diffmoe_scale.moe.permutation import Permutation

TOKENS, EXPERTS, WIDTH = 11, 4, 6


def random_mask(seed: int, share: float) -> Tensor:
    return torch.rand(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed)) < share


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_are_the_tokens_of_one_expert_after_another(share: float) -> None:
    mask_SE = random_mask(0, share)
    places = [(s, e) for e in range(EXPERTS) for s in range(TOKENS) if mask_SE[s, e]]
    permutation = Permutation.of(mask_SE, num_rows=len(places))
    x_SD, gate_SE = random(TOKENS, WIDTH), random(TOKENS, EXPERTS)
    for i, (s, e) in enumerate(places):
        assert torch.equal(permutation.rows(x_SD)[i], x_SD[s])
        assert permutation.gates(gate_SE)[i] == gate_SE[s, e]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_token_is_the_sum_of_its_rows_in_the_order_of_experts(share: float) -> None:
    mask_SE = random_mask(0, share)
    places = [(s, e) for e in range(EXPERTS) for s in range(TOKENS) if mask_SE[s, e]]
    rows_RD = random(len(places), WIDTH).float()
    expected_SD = torch.zeros(TOKENS, WIDTH)
    for row_D, (s, _) in zip(rows_RD, places, strict=True):
        expected_SD[s] += row_D
    assert torch.equal(Permutation.of(mask_SE, num_rows=len(places)).tokens(rows_RD), expected_SD)


def test_in_bf16_a_token_is_added_up_in_fp32() -> None:
    rows_RD = random(EXPERTS, WIDTH).bfloat16()
    mask_SE = torch.ones(1, EXPERTS, dtype=torch.bool)
    y_SD = Permutation.of(mask_SE, num_rows=EXPERTS).tokens(rows_RD)
    assert torch.equal(y_SD, rows_RD.float().sum(dim=0, keepdim=True).bfloat16())


def test_gradients_are_those_of_finite_differences() -> None:
    mask_SE = random_mask(0, 0.4)
    permutation = Permutation.of(mask_SE, num_rows=int(mask_SE.sum()))
    x_SD, gate_SE = random(TOKENS, WIDTH).requires_grad_(), random(TOKENS, EXPERTS).requires_grad_()
    rows_RD = random(int(mask_SE.sum()), WIDTH).requires_grad_()
    assert torch.autograd.gradcheck(permutation.rows, x_SD)
    assert torch.autograd.gradcheck(permutation.gates, gate_SE)
    assert torch.autograd.gradcheck(permutation.tokens, rows_RD)
