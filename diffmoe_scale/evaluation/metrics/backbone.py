"""What a frozen network is to metrics: uint8 pictures in, named features out.

B pictures; C H W colours, height and width; F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class FeatureNetwork(Protocol):
    """`widths` are those of its outputs: `pool`, `spatial`, `logits`, `cosines`."""

    widths: Mapping[str, int]

    def __call__(self, pictures_BCHW: Tensor, captions: Sequence[str] | None) -> dict[str, Tensor]:
        """Features by output, [B, F], and cosines [B] of pictures and captions where captions are given."""
        ...


@dataclass(frozen=True)
class Backbone:
    """A network with what results say of it."""

    name: str
    """Architecture."""
    fingerprint: str
    """SHA-256 of its weights, 16 digits."""
    resize: str
    """How pictures are brought to its size."""
    network: FeatureNetwork
    device: torch.device

    def features(self, pictures_BHWC: Tensor, captions: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`pictures_BHWC` is uint8. TF32 and autocast, which change the third digit, are off."""
        pictures_BCHW = pictures_BHWC.to(self.device).permute(0, 3, 1, 2).contiguous()
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, enabled=False),
                torch.backends.cudnn.flags(allow_tf32=False),
            ):
                return self.network(pictures_BCHW, captions)
        finally:
            torch.set_float32_matmul_precision(precision)
