"""The streams of several text encoders, made one for the network.

B captions, L tokens, T token width, V pooled width, D width of the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures, TextStream

EPSILON = 1e-6


class TextProjection(nn.Module):
    """RMSNorm and a linear layer to the width of the model: [B, L, T] -> [B, L, D]. The norm makes encoders
    of very different magnitudes alike."""

    def __init__(self, stream: StreamWidths, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(stream.token, eps=EPSILON)
        self.linear = nn.Linear(stream.token, width)

    def forward(self, tokens_BLT: Tensor) -> Tensor:
        # Features come in fp32 and can be thousands: they are normalized before they are rounded.
        normed_BLT = F.rms_norm(tokens_BLT.float(), tokens_BLT.shape[-1:], eps=EPSILON)
        projected_BLD: Tensor = self.linear(normed_BLT.to(self.linear.weight.dtype) * self.norm.weight)
        return projected_BLD


def build_text_projections(config: ModelConfig, streams: tuple[StreamWidths, ...]) -> nn.ModuleList | None:
    """One for each stream with `model.text_projection`, else none."""
    if not config.text_projection:
        assert len(streams) <= 1, "the config refuses several streams without model.text_projection"
        return None
    return nn.ModuleList(TextProjection(stream, config.width) for stream in streams)


def joined_width(config: ModelConfig, streams: tuple[StreamWidths, ...]) -> int:
    """Width of the tokens that `join_streams` gives; 0 without a stream."""
    if not streams:
        return 0
    return config.width if config.text_projection else streams[0].token


def join_streams(text: TextFeatures, projections: nn.ModuleList | None, dtype: torch.dtype) -> TextStream:
    """All tokens one stream after another, and all pooled features side by side, in the format of the model:
    frozen encoders give fp32 whatever it is."""
    if projections is None:
        (stream,) = text.streams
        tokens_BLT, mask_BL = stream.tokens_BLT.to(dtype), stream.mask_BL
    else:
        pairs = zip(projections, text.streams, strict=True)
        tokens_BLT = torch.cat([project(stream.tokens_BLT) for project, stream in pairs], dim=1)
        mask_BL = torch.cat([stream.mask_BL for stream in text.streams], dim=1)
    pooled = [stream.pooled_BV for stream in text.streams if stream.pooled_BV is not None]
    return TextStream(tokens_BLT, mask_BL, torch.cat(pooled, dim=1).to(dtype) if pooled else None)
