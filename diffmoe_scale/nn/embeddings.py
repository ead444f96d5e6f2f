"""Vectors for places and numbers: positions of tokens, the timestep, the size of a picture.

B samples, N tokens a sample, D width.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.nn.generator import draw_defaults


def sinusoidal_embedding(
    time_B: Tensor, width: int, *, max_period: float = 10000.0, reaches_end: bool = False
) -> Tensor:
    """Cosines, then sines, of time times `width / 2` falling frequencies; fp32 [B, width] (DiT's
    timestep_embedding). The last is 1 / max_period if it `reaches_end` (diffusers'
    downscale_freq_shift=1)."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period)
        / (half - reaches_end)
        * torch.arange(half, device=time_B.device, dtype=torch.float32)
    )
    angles = time_B.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_scale(rows: int, columns: int, base: int) -> float:
    """The edge of a token of rows x columns where one of base x base has 1 and both grids have one area."""
    return base / math.sqrt(rows * columns)


def middle_distances(count: int) -> Tensor:
    """Of each of `count` tokens in a line from the middle, in tokens; fp64."""
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2


def position_embedding(rows: int, columns: int, width: int, *, base: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine embedding [rows * columns, width]: half of the width for the column, half for the
    row (MAE, DiT).

    With `base`, the grid is scaled about its middle to the area and middle of one of base x base tokens: the
    same part of a picture has nearly the same embedding in every resolution and shape, and rows = columns =
    base is that grid itself.
    """

    def coordinates(count: int) -> Tensor:
        if base == 0:
            return torch.arange(count, dtype=torch.float64)
        return middle_distances(count) * grid_scale(rows, columns, base) + (base - 1) / 2

    def axis_embedding(position_N: Tensor) -> Tensor:
        frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        angles = position_N[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row, column = torch.meshgrid(coordinates(rows), coordinates(columns), indexing="ij")
    return torch.cat([axis_embedding(column.flatten()), axis_embedding(row.flatten())], dim=1).float()


@lru_cache(maxsize=64)
def position_embedding_on(device: torch.device, rows: int, columns: int, width: int, base: int) -> Tensor:
    """`position_embedding` on a device, remembered for the shapes of a run's buckets."""
    return position_embedding(rows, columns, width, base=base).to(device)


class TimestepEmbedding(nn.Module):
    """MLP on 256 sinusoids of the timestep: [B] -> [B, D]."""

    def __init__(self, width: int, *, reaches_end: bool = False) -> None:
        super().__init__()
        self.num_frequencies = 256
        self.reaches_end = reaches_end
        first, last = nn.Linear(self.num_frequencies, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def initialize(self) -> None:
        """Small weights and no biases (DiT), after torch's own."""
        draw_defaults(self)
        for layer in (self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, time_B: Tensor) -> Tensor:
        first: nn.Linear = self.mlp[0]  # type: ignore[assignment]  # Sequential's items are typed as Module
        sinusoids_BF = sinusoidal_embedding(time_B, self.num_frequencies, reaches_end=self.reaches_end)
        embedding_BD: Tensor = self.mlp(sinusoids_BF.to(first.weight.dtype))
        return embedding_BD


class SizeEmbedding(nn.Module):
    """MLP on 256 sinusoids of each of Z size conditions (SDXL, arXiv 2307.01952 section 2.2): [B, Z] -> [B,
    D]. Starts at zero."""

    def __init__(self, num_conditions: int, width: int) -> None:
        super().__init__()
        self.num_frequencies = 256
        self.hidden = nn.Linear(num_conditions * self.num_frequencies, width)
        self.output = nn.Linear(width, width)

    def forward(self, sizes_BZ: Tensor) -> Tensor:
        sinusoids_BF = sinusoidal_embedding(sizes_BZ.flatten(), self.num_frequencies).view(
            sizes_BZ.shape[0], -1
        )
        embedding_BD: Tensor = self.output(F.silu(self.hidden(sinusoids_BF.to(self.hidden.weight.dtype))))
        return embedding_BD
