"""What a frozen network is to metrics: uint8 pictures in, named features out.

B pictures; C H W colours, height and width; F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """SHA-256 of its weights, with its description where that is a file of its own; 16 digits."""
    resize: str
    """How pictures are brought to its size."""
    network: FeatureNetwork
    device: torch.device

    def features(self, pictures_BHWC: Tensor, captions: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`pictures_BHWC` is uint8."""
        pictures_BCHW = pictures_BHWC.to(self.device).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), exact_float32():
            return self.network(pictures_BCHW, captions)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32 and bfloat16, which a training may have turned on: they change the third digit."""
    # Not torch.backends.cudnn.flags(): what it is not given it turns off, cuDNN itself among it (torch 2.14).
    precision, is_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = is_tf32
