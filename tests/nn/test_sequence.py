"""Attention with the tokens of a sample over several ranks: the answers and gradients of whole samples."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffmoe_scale.nn.attention import JointAttention, SelfAttention
from diffmoe_scale.nn.rope import own_rotation, rotation_2d
from diffmoe_scale.nn.sequence import gather_tokens, own_tokens
from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks

WIDTH, HEADS, ROWS, COLUMNS = 32, 4, 4, 3


def answer_and_gradients(group: dist.ProcessGroup | None) -> list[np.ndarray]:
    """Two blocks of joint attention, the second of which reads what the first made of the text, and one of
    self-attention; the gradient of the mean over ranks."""
    torch.manual_seed(0)
    first = JointAttention(WIDTH, HEADS, qk_norm="rms", is_last=False)
    second = JointAttention(WIDTH, HEADS, is_last=True)
    last = SelfAttention(WIDTH, HEADS)
    x_BND, text_BLD = torch.randn(2, ROWS * COLUMNS, WIDTH), torch.randn(2, 5, WIDTH, requires_grad=True)
    mask_BL = torch.arange(5) < torch.tensor([[5], [3]])
    weight_BND = torch.randn_like(x_BND)
    rotation = own_rotation(rotation_2d(ROWS, COLUMNS, WIDTH // HEADS, base=ROWS), group)
    own_BND = own_tokens(x_BND, group, dim=1)
    y_BND, made_BLD = first(own_BND, text_BLD, mask_BL, rotation, group=group)
    assert made_BLD is not None
    y_BND, _ = second(y_BND, made_BLD, mask_BL, group=group)
    whole_BND: Tensor = gather_tokens(last(y_BND, rotation, group=group), group)
    (whole_BND * weight_BND).sum().backward()
    found = [whole_BND.detach()]
    parameters = nn.ModuleList([first, second, last]).parameters()
    for gradient in [text_BLD.grad, *(parameter.grad for parameter in parameters)]:
        assert gradient is not None
        if group is not None:
            dist.all_reduce(gradient, group=group)
            gradient = gradient / group.size()
        found.append(gradient)
    return [tensor.numpy() for tensor in found]


def of_ranks(context: ParallelContext) -> list[np.ndarray]:
    return answer_and_gradients(context.sequence_group)


def test_answers_and_gradients_are_those_of_whole_samples() -> None:
    expected = answer_and_gradients(None)
    assert all(np.abs(array).max() > 1e-3 for array in expected[1:3])
    for found in run_on_ranks(of_ranks, 2, sequence_parallel=2):
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
