import math

import pytest
import torch

from diffmoe_scale.nn.attention import CrossAttention, attention


# 257 queries take the fused kernel, 16 the plain one.
@pytest.mark.parametrize("num_tokens", [16, 257])
def test_attention_is_a_softmax_over_the_keys_that_count(num_tokens: int) -> None:
    query, key, value = torch.randn(2, 2, num_tokens, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    is_valid_BL = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    logits = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~is_valid_BL[:, None, None, :], -math.inf)
    got = attention(query, key, value, is_valid_BL[:, None, None, :])
    torch.testing.assert_close(got, logits.softmax(-1) @ value, rtol=1e-5, atol=1e-5)


def test_cross_attention_of_one_token_is_its_value_for_every_query() -> None:
    layer = CrossAttention(8, 2, 3)
    text_BLT = torch.randn(2, 4, 3)
    mask_BL = torch.tensor([[False, True, False, False]] * 2)
    _, value_BD = layer.key_value(text_BLT[:, 1]).chunk(2, dim=-1)
    expected_BND = layer.projection(value_BD)[:, None].expand(2, 5, 8)
    torch.testing.assert_close(layer(torch.randn(2, 5, 8), text_BLT, mask_BL), expected_BND)
