"""What every text encoder is: token ids to a stream of features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.tokenizer import Tokenizer


class TextEncoder(nn.Module, ABC):
    """Ids [B, L] of `tokenize` to a TextStream."""

    is_trained: bool
    """Trained along with the transformer and part of its checkpoints, or frozen and no part of them."""
    token_width: int
    pooled_width: int
    """0: no vector for a whole caption."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Ids on the CPU, int64 [B, L]; an empty caption has no piece, only what the tokenizer adds."""
        return self.tokenizer(captions)

    def mask_of(self, tokens_BL: Tensor) -> Tensor:
        """Where ids are tokens of their caption (True), not padding."""
        return tokens_BL != self.tokenizer.pad

    @abstractmethod
    def forward(self, tokens_BL: Tensor) -> TextStream: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for encoders that give equal features; "" of one that is trained along."""
