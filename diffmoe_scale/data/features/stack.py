"""Batches of stored features."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffmoe_scale.data.features.source import BITS, PRECISIONS, StoredCaption
from diffmoe_scale.encoders.text.features import TextFeatures, TextStream


def stack_arrays(arrays: Sequence[np.ndarray | None], shape: tuple[int, ...], *, precision: str) -> Tensor:
    """[B, *shape] in bf16 of the bits of each sample's array; zeros for None."""
    stacked = np.zeros((len(arrays), *shape), BITS[precision])
    for row, bits in enumerate(arrays):
        if bits is not None:
            stacked[row] = bits
    return _to_bf16(stacked, precision)


def stack_captions(captions: Sequence[Sequence[StoredCaption]], *, precision: str) -> TextFeatures:
    """Captions, each by all encoders, padded with zeros to an encoder's longest, in bf16."""
    return TextFeatures(
        tuple(_stack_stream(stream, precision=precision) for stream in zip(*captions, strict=True))
    )


def _stack_stream(captions: Sequence[StoredCaption], *, precision: str) -> TextStream:
    lengths = [len(caption.tokens_LT) for caption in captions]
    tokens_BLT = np.zeros((len(captions), max(lengths), captions[0].tokens_LT.shape[1]), BITS[precision])
    for row, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
        tokens_BLT[row, :length] = caption.tokens_LT
    mask_BL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    pooled = [caption.pooled_P for caption in captions if caption.pooled_P is not None]
    pooled_BP = _to_bf16(np.stack(pooled), precision) if pooled else None
    return TextStream(_to_bf16(tokens_BLT, precision), mask_BL, pooled_BP)


def _to_bf16(bits: np.ndarray, precision: str) -> Tensor:
    """bf16 holds both stored formats exactly; all zeros are zero in both."""
    return torch.from_numpy(bits).view(PRECISIONS[precision]).to(torch.bfloat16)
