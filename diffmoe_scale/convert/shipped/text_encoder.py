"""The text encoder that was trained along, as a model of diffusers.

B captions, L tokens, T token width.
"""

from collections.abc import Mapping

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from diffmoe_scale.convert.shipped.checked import CheckedModel
from diffmoe_scale.encoders.text.trained import TextBlock


class DiffMoETextEncoder(CheckedModel):
    """Ids and their mask to features of tokens, and their mean."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        vocabulary: int,
        max_tokens: int,
        width: int,
        depth: int,
        heads: int,
        auto_map: Mapping[str, str] | None = None,
    ) -> None:
        """`auto_map` is AutoModel's."""
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_LT = nn.Parameter(torch.zeros(max_tokens, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, L, T] of tokens, and [B, T] of captions."""
        x_BLT = self.token_embedding(tokens_BL) + self.position_LT[: tokens_BL.shape[1]]
        for block in self.blocks:
            x_BLT = block(x_BLT, mask_BL)
        x_BLT = self.final_norm(x_BLT)
        weight_BL = mask_BL.to(x_BLT.dtype)
        pooled_BT = torch.einsum("blt,bl->bt", x_BLT, weight_BL) / weight_BL.sum(1, keepdim=True)
        return x_BLT, pooled_BT
