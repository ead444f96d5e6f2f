"""The parts of a diffusion transformer block except its experts (DiT, arXiv 2212.09748).

B samples, N tokens a sample, D width, L text tokens, T text width, C H W image or latent, M modulations.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_embedding(time_B: Tensor, width: int, *, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of time times `width / 2` falling frequencies; fp32 [B, width] (DiT's
    timestep_embedding)."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period) / half * torch.arange(half, device=time_B.device, dtype=torch.float32)
    )
    angles = time_B.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def position_embedding(rows: int, columns: int, width: int, *, base: int = 0) -> Tensor:
    """Fixed 2-D sine-cosine embedding [rows * columns, width]: half of the width for the column, half for the
    row (MAE, DiT).

    With `base`, the grid is scaled about its middle to the area and middle of one of base x base tokens: the
    same part of a picture has nearly the same embedding in every resolution and shape, and rows = columns =
    base is that grid itself.
    """
    scale = base / math.sqrt(rows * columns) if base else 1.0

    def coordinates(count: int) -> Tensor:
        number_N = torch.arange(count, dtype=torch.float64)
        return (number_N - (count - 1) / 2) * scale + (base - 1) / 2 if base else number_N

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


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """Tokens [B, N, C * patch * patch] of an image, row by row; the order within a token is that of a
    convolution's weight."""
    return F.unfold(x_BCHW, patch, stride=patch).transpose(1, 2)


def unpatchify(x_BNP: Tensor, *, patch: int, rows: int, columns: int) -> Tensor:
    """The image [B, C, H, W] of tokens whose features are ordered (patch row, patch column, channel), as
    DiT's last layer gives them."""
    batch = x_BNP.shape[0]
    x = x_BNP.reshape(batch, rows, columns, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)


def modulate(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    return torch.addcmul(shift_BD[:, None], x_BND, 1 + scale_BD[:, None])


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention on [B, heads, N, D / heads]; `mask` broadcasts to [B, heads, N, L], True
    where a key counts."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class TimestepEmbedding(nn.Module):
    """MLP on 256 sinusoids of the timestep: [B] -> [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_frequencies = 256
        first, last = nn.Linear(self.num_frequencies, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, time_B: Tensor) -> Tensor:
        first: nn.Linear = self.mlp[0]  # type: ignore[assignment]  # Sequential's items are typed as Module
        embedding_BD: Tensor = self.mlp(
            sinusoidal_embedding(time_B, self.num_frequencies).to(first.weight.dtype)
        )
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


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of a sample, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BND).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attention(query, key, value)
        y_BND: Tensor = self.projection(y.transpose(1, 2).flatten(2))
        return y_BND


class CrossAttention(nn.Module):
    """Attention of image tokens to caption tokens, [B, N, D] x [B, L, T] -> [B, N, D]. Its output starts at
    zero."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_width, 2 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, text_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        query = self.query(x_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(text_BLT).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = attention(query, key, value, mask_BL[:, None, None, :])
        y_BND: Tensor = self.projection(y.transpose(1, 2).flatten(2))
        return y_BND
