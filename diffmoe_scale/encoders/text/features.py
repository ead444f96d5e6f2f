"""What the network sees of captions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    """What the transformer sees of captions: token features, where they are valid (True), and one vector a
    caption."""

    tokens_BLT: Tensor
    mask_BL: Tensor
    pooled_BV: Tensor

    def to(self, device: torch.device) -> "TextFeatures":
        """The same on a device, in fp32."""
        return TextFeatures(
            self.tokens_BLT.to(device).float(), self.mask_BL.to(device), self.pooled_BV.to(device).float()
        )
