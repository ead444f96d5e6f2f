"""What the network sees of captions: a stream of features from each text encoder.

B captions, L tokens, T token width, V pooled width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StreamWidths:
    """The shape of an encoder's features."""

    name: str
    token: int
    pooled: int
    """0: the encoder gives no vector for a whole caption."""


@dataclass(frozen=True)
class TextStream:
    """The features of one encoder: those of tokens, where they are valid (True), and one vector a caption."""

    tokens_BLT: Tensor
    mask_BL: Tensor
    pooled_BV: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "TextStream":
        """The same with `change` of each tensor."""
        pooled_BV = None if self.pooled_BV is None else change(self.pooled_BV)
        return TextStream(change(self.tokens_BLT), change(self.mask_BL), pooled_BV)


@dataclass(frozen=True)
class TextFeatures:
    """The streams of several encoders, in the order of the config."""

    streams: tuple[TextStream, ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "TextFeatures":
        return TextFeatures(tuple(stream.map(change) for stream in self.streams))

    def to(self, device: torch.device) -> "TextFeatures":
        """The same on a device, in fp32."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device)
            return moved.float() if moved.is_floating_point() else moved

        return self.map(move)
