"""Multi-head attention among the tokens of a sample, and of its tokens to those of its caption.

B samples, N tokens a sample, D width, L text tokens, T text width.
"""

import torch.nn.functional as F
from torch import Tensor, nn


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention on [B, heads, N, D / heads]; `mask` broadcasts to [B, heads, N, L], True
    where a key counts."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


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
