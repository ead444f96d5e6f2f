"""Rotary positions against diffusers' own tables for the same places."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import (
    apply_rotary_emb,
    get_1d_rotary_pos_embed,
    get_2d_rotary_pos_embed_from_grid,
)
from torch import Tensor

from diffmoe_scale.nn.rope import Rotation, rotate, rotation_2d

HEAD_WIDTH = 12


def places(rows: int, columns: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every token, as distances from the middle, written out token by token."""
    scale = base / math.sqrt(rows * columns)
    grid = [
        ((i - (rows - 1) / 2) * scale, (j - (columns - 1) / 2) * scale)
        for i in range(rows)
        for j in range(columns)
    ]
    row_N, column_N = zip(*grid, strict=True)
    return np.array(row_N), np.array(column_N)


def assert_same_table(rotation: Rotation, cos_Nd: Tensor, sin_Nd: Tensor) -> None:
    """diffusers repeats each angle for both numbers of a pair."""
    for got_NR, table_Nd in ((rotation.cos_NR, cos_Nd), (rotation.sin_NR, sin_Nd)):
        assert torch.equal(table_Nd[:, ::2], table_Nd[:, 1::2])
        # Theirs are angles in fp32.
        torch.testing.assert_close(got_NR, table_Nd[:, ::2].float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows, columns", [(8, 8), (12, 8), (4, 16), (16, 16), (1, 5)])
def test_angles_are_those_of_diffusers_functions_for_the_same_places(rows: int, columns: int) -> None:
    rotation = rotation_2d(rows, columns, HEAD_WIDTH, base=8)
    row_N, column_N = places(rows, columns, base=8)
    tables = [
        get_1d_rotary_pos_embed(HEAD_WIDTH // 2, place_N, use_real=True) for place_N in (column_N, row_N)
    ]
    assert_same_table(rotation, *(torch.cat(part, dim=1) for part in zip(*tables, strict=True)))
    # Its grid has the columns first.
    grid = np.stack([column_N, row_N]).reshape(2, 1, rows, columns)
    assert_same_table(rotation, *get_2d_rotary_pos_embed_from_grid(HEAD_WIDTH, grid, use_real=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_heads_turn_as_in_diffusers(dtype: torch.dtype, tolerance: float) -> None:
    rotation = rotation_2d(3, 5, HEAD_WIDTH, base=4)
    query_BHNd = torch.randn(2, 3, 15, HEAD_WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    cos_Nd, sin_Nd = (part.repeat_interleave(2, dim=1) for part in (rotation.cos_NR, rotation.sin_NR))
    got = rotate(query_BHNd, rotation)
    # Their hint speaks of a tuple of one tensor.
    expected = apply_rotary_emb(query_BHNd, (cos_Nd, sin_Nd))  # type: ignore[arg-type]
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_products_of_turned_heads_depend_on_distances_alone_and_lengths_stay() -> None:
    rotation = rotation_2d(5, 5, HEAD_WIDTH, base=5)
    generator = torch.Generator().manual_seed(0)
    query_d, key_d = torch.randn(2, HEAD_WIDTH, generator=generator)
    query_Nd, key_Nd = (rotate(x_d.expand(1, 1, 25, HEAD_WIDTH), rotation)[0, 0] for x_d in (query_d, key_d))
    products = (query_Nd @ key_Nd.T).view(5, 5, 5, 5)
    # From (row, column) to one row down and two columns to the right, wherever it begins.
    steps = torch.stack([products[i, j, i + 1, j + 2] for i in range(4) for j in range(3)])
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(products[0, 0, 1, 2], products[0, 0, 2, 1])
    torch.testing.assert_close(query_Nd.norm(dim=1), query_d.norm().expand(25))


def test_the_middle_of_the_picture_is_not_turned() -> None:
    rotation = rotation_2d(3, 5, HEAD_WIDTH, base=4)
    assert (rotation.cos_NR[7] == 1).all() and (rotation.sin_NR[7] == 0).all()
