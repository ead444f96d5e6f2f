"""Large pictures decoded in overlapping squares, so that memory is that of one square."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP = 4
"""Neighbouring tiles share one part in so many."""


def decode_in_tiles(decode: Callable[[Tensor], Tensor], z_BCHW: Tensor, *, tile: int, factor: int) -> Tensor:
    """Images of `decode` applied to squares of `tile` latents, which share a quarter with their neighbours
    and are blended linearly there.

    Not equal to decoding the whole: attention and normalization see one tile at a time. `tile` is a multiple
    of 4; `decode` makes images larger by `factor` on each side.
    """
    height, width = z_BCHW.shape[-2:]
    if height <= tile and width <= tile:
        return decode(z_BCHW)
    blended_BCHW, weight_HW = torch.zeros(()), torch.zeros(())
    for top in _starts(height, tile):
        for left in _starts(width, tile):
            part_BCHW = decode(z_BCHW[..., top : top + tile, left : left + tile])
            if not blended_BCHW.dim():
                shape = (*part_BCHW.shape[:2], height * factor, width * factor)
                blended_BCHW, weight_HW = part_BCHW.new_zeros(shape), part_BCHW.new_zeros(shape[2:])
            rows, columns = part_BCHW.shape[-2:]
            ramps = (_ramp(size, tile * factor // OVERLAP, part_BCHW) for size in (rows, columns))
            mask_HW = torch.outer(*ramps)
            place = (
                ...,
                slice(top * factor, top * factor + rows),
                slice(left * factor, left * factor + columns),
            )
            blended_BCHW[place] += mask_HW * part_BCHW
            weight_HW[place] += mask_HW
    return blended_BCHW / weight_HW


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin; the last one ends with the picture."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - tile // OVERLAP), last]


def _ramp(size: int, overlap: int, like: Tensor) -> Tensor:
    """Weights of the rows of a tile: rising over the overlap, then 1, then falling."""
    distance = torch.arange(size, device=like.device, dtype=like.dtype) + 0.5
    return (torch.minimum(distance, size - distance) / overlap).clamp(max=1)
