"""Rotary positions in two axes: attention between two tokens depends on how far apart they are (RoPE, arXiv
2104.09864; by axis as in Flux and diffusers' `get_2d_rotary_pos_embed`).

B samples, H heads, N tokens, d width of a head, R = d / 2 pairs of numbers.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.nn.embeddings import grid_scale, middle_distances
from diffmoe_scale.nn.sequence import own_tokens


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of the angles by which pairs of numbers of a head are turned, fp32."""

    cos_NR: Tensor
    sin_NR: Tensor


def own_rotation(rotation: Rotation, group: dist.ProcessGroup | None) -> Rotation:
    """Of this rank's part of the tokens."""
    return Rotation(*(own_tokens(part, group, dim=0) for part in (rotation.cos_NR, rotation.sin_NR)))


def rotation_2d(rows: int, columns: int, head_width: int, *, base: int) -> Rotation:
    """Angles of a grid of tokens: the first half of the pairs turn by the column, the others by the row.

    Places are distances from the middle of the picture, in tokens of a grid of base x base and of the same
    area: the same part of a picture turns by the same angle in every resolution. What is not rotated (text in
    joint attention) lies in the middle.
    """
    scale = grid_scale(rows, columns, base)
    frequencies = 10000.0 ** -(torch.arange(0, head_width // 2, 2, dtype=torch.float64) / (head_width // 2))
    row_N, column_N = torch.meshgrid(
        middle_distances(rows) * scale, middle_distances(columns) * scale, indexing="ij"
    )
    angles_NR = torch.cat([place_N.flatten()[:, None] * frequencies for place_N in (column_N, row_N)], dim=1)
    return Rotation(angles_NR.cos().float(), angles_NR.sin().float())


@lru_cache(maxsize=64)
def rotation_2d_on(device: torch.device, rows: int, columns: int, head_width: int, base: int) -> Rotation:
    """`rotation_2d` on a device, remembered for the shapes of a run's buckets."""
    rotation = rotation_2d(rows, columns, head_width, base=base)
    return Rotation(rotation.cos_NR.to(device), rotation.sin_NR.to(device))


def rotate(x_BHNd: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys with the pairs (0, 1), (2, 3), ... of their numbers turned; computed in fp32."""
    first, second = x_BHNd.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos_NR, sin_NR = rotation.cos_NR, rotation.sin_NR
    turned = torch.stack([first * cos_NR - second * sin_NR, second * cos_NR + first * sin_NR], dim=-1)
    return turned.flatten(-2).to(x_BHNd.dtype)
