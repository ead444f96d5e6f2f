"""A small text encoder that is trained along with the transformer.

B captions, L tokens, T token width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.tokenizer import PAD, Tokenizer
from diffmoe_scale.nn.generator import draw_defaults, seeded


class TextBlock(nn.Module):
    """Pre-norm transformer block, [B, L, T] -> [B, L, T]; a token sees all valid tokens of its caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.w_in = nn.Linear(width, 4 * width)
        self.w_out = nn.Linear(4 * width, width)

    def forward(self, x_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(self.attention_norm(x_BLT)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_BL[:, None, None, :])
        x_BLT = x_BLT + self.projection(y.transpose(1, 2).flatten(2))
        hidden = F.gelu(self.w_in(self.feed_forward_norm(x_BLT)), approximate="tanh")
        return x_BLT + self.w_out(hidden)


class TrainedTextEncoder(TextEncoder):
    """Token and position embeddings, `text.depth` blocks, LayerNorm; pooled is the mean over valid tokens.

    The constructor draws no weights (`initialize` does): it can run on `meta`.
    """

    is_trained = True

    def __init__(self, config: TextConfig, tokenizer: Tokenizer, *, vocabulary: int) -> None:
        super().__init__(tokenizer)
        self.token_width = self.pooled_width = config.width
        self.token_embedding = nn.Embedding(vocabulary, config.width)
        self.position_LT = nn.Parameter(torch.empty(tokenizer.max_tokens, config.width))
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width)

    def initialize(self, seed: int) -> None:
        """Weights from `seed` alone.

        Token embeddings have unit variance (T5's): at 0.02 Adam's first steps move all of them together by
        many times their differences, and every caption looks the same for thousands of steps.
        """
        with seeded(seed):
            # torch's own come first, so that a seed's weights are those of earlier versions.
            draw_defaults(self)
            self._draw()

    def _draw(self) -> None:
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_LT, std=0.3)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def fingerprint(self) -> str:
        return ""

    def forward(self, tokens_BL: Tensor) -> TextStream:
        mask_BL = tokens_BL != PAD
        x_BLT = self.token_embedding(tokens_BL) + self.position_LT[: tokens_BL.shape[1]]
        for block in self.blocks:
            x_BLT = block(x_BLT, mask_BL)
        x_BLT = self.final_norm(x_BLT)
        weight_BL = mask_BL.to(x_BLT.dtype)
        pooled_BT = torch.einsum("blt,bl->bt", x_BLT, weight_BL) / weight_BL.sum(1, keepdim=True)
        return TextStream(x_BLT, mask_BL, pooled_BT)
