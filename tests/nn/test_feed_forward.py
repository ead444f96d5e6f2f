"""The dense network against its formula."""

import torch
import torch.nn.functional as F

from diffmoe_scale.nn.feed_forward import FeedForward


def make(*, is_gated: bool) -> FeedForward:
    network = FeedForward(8, 16, is_gated=is_gated)
    network.initialize(torch.Generator().manual_seed(0))
    return network


def test_plain_network_is_linear_gelu_linear_with_biases() -> None:
    x, plain = torch.randn(3, 8), make(is_gated=False)
    torch.testing.assert_close(
        plain(x),
        F.gelu(x @ plain.w_in.weight.T + plain.w_in.bias, approximate="tanh") @ plain.w_out.weight.T
        + plain.w_out.bias,
    )


def test_gated_network_is_swiglu_without_biases() -> None:
    x, gated = torch.randn(3, 8), make(is_gated=True)
    gate, value = (x @ gated.w_in.weight.T).split(16, dim=1)
    torch.testing.assert_close(gated(x), (F.silu(gate) * value) @ gated.w_out.weight.T)
    assert gated.w_in.bias is None and gated.w_out.bias is None


def test_gate_and_value_start_at_the_scale_of_a_matrix_of_their_own() -> None:
    bound = (6 / (8 + 16)) ** 0.5
    largest = [half.abs().max().item() for half in make(is_gated=True).w_in.weight.chunk(2)]
    assert all(0.8 * bound < value <= bound for value in largest)
