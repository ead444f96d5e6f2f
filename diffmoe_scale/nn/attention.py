"""Multi-head attention among the tokens of a sample, of its tokens to those of its caption, and among both.

B samples, N tokens a sample, D width, L text tokens, T text width, H heads, d = D / H.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.nn.rope import Rotation, rotate
from diffmoe_scale.nn.sequence import gather_heads, own_heads, to_heads, to_tokens

HeadNorm = Literal["none", "rms"]
MOST_FP32_KEYS = 256
"""On a CPU, attention in bf16 to at most so many keys is computed in fp32. Forward and backward of torch's
flash attention take 10.4 ms in bf16 and 3.0 this way for 64 tokens (16 x 4 heads of 32), 24.6 and 20.9 for
256 (4 x 6 heads of 64), but 173 and 206 for 1024 (2 x 8 heads of 64)."""


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention on [B, heads, N, D / heads]; `mask` broadcasts to [B, heads, N, L], True
    where a key counts."""
    is_bf16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if is_bf16_on_cpu and key.shape[-2] <= MOST_FP32_KEYS:
        return attention(query.float(), key.float(), value.float(), mask).to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def split_heads(x_BNX: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """`count` tensors [B, H, N, d] of the output of one linear layer."""
    return x_BNX.unflatten(-1, (count, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(y_BHNd: Tensor) -> Tensor:
    """[B, N, D] of the heads' answers."""
    return y_BHNd.transpose(1, 2).flatten(2)


def build_head_norm(kind: HeadNorm, head_width: int) -> nn.Module:
    """RMSNorm of each head's queries, or of its keys, with a scale that all heads share (QK-norm of SD3);
    the identity for `none`."""
    return nn.RMSNorm(head_width, eps=1e-6) if kind == "rms" else nn.Identity()


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of a sample, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, *, qk_norm: HeadNorm = "none") -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = build_head_norm(qk_norm, width // heads)
        self.key_norm = build_head_norm(qk_norm, width // heads)
        self.projection = nn.Linear(width, width)

    def forward(
        self, x_BND: Tensor, rotation: Rotation | None = None, *, group: dist.ProcessGroup | None = None
    ) -> Tensor:
        """`rotation` are the tokens' places; with `group` they are this rank's part of the tokens."""
        query, key, value = split_heads(self.qkv(x_BND), 3, self.heads)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if group is None:
            y = attention(query, key, value)
        else:
            y = to_tokens(attention(*to_heads(torch.cat([query, key, value]), group).chunk(3)), group)
        y_BND: Tensor = self.projection(merge_heads(y))
        return y_BND


class CrossAttention(nn.Module):
    """Attention of image tokens to caption tokens, [B, N, D] x [B, L, T] -> [B, N, D]. Its output starts at
    zero."""

    def __init__(self, width: int, heads: int, text_width: int, *, qk_norm: HeadNorm = "none") -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_width, 2 * width)
        self.query_norm = build_head_norm(qk_norm, width // heads)
        self.key_norm = build_head_norm(qk_norm, width // heads)
        self.projection = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, text_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        (query,) = split_heads(self.query(x_BND), 1, self.heads)
        key, value = split_heads(self.key_value(text_BLT), 2, self.heads)
        query, key = self.query_norm(query), self.key_norm(key)
        y = attention(query, key, value, mask_BL[:, None, None, :])
        y_BND: Tensor = self.projection(merge_heads(y))
        return y_BND


class JointAttention(nn.Module):
    """Attention among image and text tokens together, each with weights of their own (MMDiT of Stable
    Diffusion 3, arXiv 2403.03206).

    Text tokens are not rotated: they lie in the middle of the picture, as far from its left as from its
    right, in every shape. In the last block nothing reads what becomes of them: there they are only looked
    at.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: HeadNorm = "none", is_last: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = build_head_norm(qk_norm, width // heads)
        self.key_norm = build_head_norm(qk_norm, width // heads)
        self.projection = nn.Linear(width, width)
        self.text_parts = 2 if is_last else 3
        self.text_qkv = nn.Linear(width, self.text_parts * width)
        self.text_query_norm = nn.Identity() if is_last else build_head_norm(qk_norm, width // heads)
        self.text_key_norm = build_head_norm(qk_norm, width // heads)
        self.text_projection = None if is_last else nn.Linear(width, width)

    def forward(
        self,
        x_BND: Tensor,
        text_BLD: Tensor,
        mask_BL: Tensor,
        rotation: Rotation | None = None,
        *,
        group: dist.ProcessGroup | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the image's tokens get [B, N, D], and the text's [B, L, D] (None in the last block). `mask_BL`
        is False for padding, which nothing attends to. With `group` the image's tokens are this rank's part,
        and the text's all."""
        query, key, value = split_heads(self.qkv(x_BND), 3, self.heads)
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        *text_queries, text_key, text_value = split_heads(
            self.text_qkv(text_BLD), self.text_parts, self.heads
        )
        text = [*map(self.text_query_norm, text_queries), self.text_key_norm(text_key), text_value]
        if group is not None:
            query, key, value = to_heads(torch.cat([query, key, value]), group).chunk(3)
            text = [own_heads(part, group) for part in text]
        num_tokens = query.shape[2]
        *text_queries, text_key, text_value = text
        y = attention(
            torch.cat([query, *text_queries], dim=2),
            torch.cat([key, text_key], dim=2),
            torch.cat([value, text_value], dim=2),
            F.pad(mask_BL, (num_tokens, 0), value=True)[:, None, None, :],
        )
        y, text_y = y[:, :, :num_tokens], y[:, :, num_tokens:]
        y_BND = self.projection(merge_heads(y if group is None else to_tokens(y, group)))
        if self.text_projection is None:
            return y_BND, None
        text_y = text_y if group is None else gather_heads(text_y, group)
        return y_BND, self.text_projection(merge_heads(text_y))
