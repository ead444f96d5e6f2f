"""A text encoder that is not trained: its weights come from local files, and only when they are needed."""

import logging
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class FrozenTextEncoder(TextEncoder):
    """Widths, tokenizer and checks without the weights; these are read by `load`, or with the first
    captions. A run whose shards hold features never reads them.

    `read_tower` gives the network on a device.
    """

    is_trained = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        name: str,
        token_width: int,
        pooled_width: int,
        read_tower: Callable[[torch.device], nn.Module],
    ) -> None:
        super().__init__(tokenizer)
        self.name, self.token_width, self.pooled_width = name, token_width, pooled_width
        self.read_tower = read_tower
        self.tower: nn.Module | None = None
        self.eval()

    def load(self, device: torch.device) -> None:
        """Read the weights, unless they are there. Raises: ValueError for files that do not fit."""
        if self.tower is not None:
            return
        self.tower = self.read_tower(device).requires_grad_(False).eval()
        weights = list(self.tower.parameters())
        size = sum(weight.nbytes for weight in weights) / 2**30
        count = sum(weight.numel() for weight in weights)
        logger.info("%s: %.4g M parameters, %.2f GiB, on %s", self.name, count / 1e6, size, device)

    def forward(self, tokens_BL: Tensor) -> TextStream:
        """Features in fp32."""
        self.load(tokens_BL.device)
        return self.encode(tokens_BL, self.mask_of(tokens_BL))

    @abstractmethod
    def encode(self, tokens_BL: Tensor, mask_BL: Tensor) -> TextStream:
        """The stream of ids, with the weights there."""
