import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffmoe_scale.nn.parts import (
    CrossAttention,
    attention,
    modulate,
    patchify,
    position_embedding,
    sinusoidal_embedding,
    unpatchify,
)
from tests.model.models import REFERENCE, WIDTH


def test_position_embedding_equals_the_reference() -> None:
    expected = np.load(REFERENCE)["state/pos_embed"][0]
    np.testing.assert_allclose(position_embedding(4, 4, WIDTH), expected, atol=1e-6)


def test_position_embedding_tells_rows_from_columns() -> None:
    embedding = position_embedding(3, 5, 8).unflatten(0, (3, 5))
    # The first half is the column's, the second the row's.
    assert torch.equal(embedding[0, 2, :4], embedding[2, 2, :4]) and torch.equal(
        embedding[1, 0, 4:], embedding[1, 4, 4:]
    )
    assert len(embedding.flatten(0, 1).unique(dim=0)) == 15


def test_timestep_sinusoids_fall_from_one_to_the_longest_period() -> None:
    got = sinusoidal_embedding(torch.tensor([0.0, 3.0]), 8)
    frequencies = [10000 ** -(i / 4) for i in range(4)]
    expected = [
        [1.0] * 4 + [0.0] * 4,
        [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies],
    ]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_patchify_and_a_matrix_are_a_strided_convolution() -> None:
    x_BCHW, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 2, 2)
    expected = F.conv2d(x_BCHW, weight, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x_BCHW, 2) @ weight.flatten(1).T, expected, rtol=1e-5, atol=1e-5)


def test_unpatchify_undoes_patches_in_row_column_channel_order() -> None:
    x_BCHW = torch.randn(2, 3, 4, 6)
    patches = [
        x_BCHW[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(0, 2, 3, 1).flatten(1)
        for row in range(2)
        for column in range(3)
    ]
    assert torch.equal(unpatchify(torch.stack(patches, dim=1), patch=2, rows=2, columns=3), x_BCHW)


def test_modulation_of_zero_changes_nothing() -> None:
    x_BND, zero_BD = torch.randn(2, 3, 4), torch.zeros(2, 4)
    assert torch.equal(modulate(x_BND, zero_BD, zero_BD), x_BND)
    torch.testing.assert_close(modulate(x_BND, zero_BD + 2, zero_BD + 3), 4 * x_BND + 2)


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


def test_position_embedding_of_another_resolution_covers_the_same_ground() -> None:
    assert torch.equal(position_embedding(4, 4, WIDTH, base=4), position_embedding(4, 4, WIDTH))
    # Tokens 1 and 2 of 4 have the coordinates 1 and 2; of 8 tokens half as wide, the two halves of token 1
    # lie at 0.75 and 1.25.
    fine = position_embedding(8, 8, 4, base=4).unflatten(0, (8, 8))
    expected = torch.tensor([[math.sin(x), math.cos(x)] for x in (0.75, 1.25)])
    torch.testing.assert_close(fine[0, 2:4, :2], expected)
    wide = position_embedding(2, 8, 4, base=4).unflatten(0, (2, 8))
    torch.testing.assert_close(wide[0, 0, :2], torch.tensor([math.sin(-2.0), math.cos(-2.0)]))
