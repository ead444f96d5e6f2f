"""How pictures are brought to the size of networks other than Inception."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_rule(size: int) -> str:
    return (
        f"bicubic with antialias to {size} x {size}, rounded to 8 bits, as Pillow; proportions are not kept"
    )


def resize_bicubic(pictures_BCHW: Tensor, size: int) -> Tensor:
    """uint8 pictures as floats 0 to 255 of whole numbers, `size` high and wide: within 1 of Pillow's."""
    wide_BCHW = pictures_BCHW.float()
    if wide_BCHW.shape[2:] == (size, size):
        return wide_BCHW
    return F.interpolate(wide_BCHW, (size, size), mode="bicubic", antialias=True).clamp(0, 255).round()


def normalize(pictures_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """From 0 to 255 to the numbers that a network was trained on; `mean` and `std` are of 0 to 1."""
    device = pictures_BCHW.device
    mean_C11 = torch.tensor(mean, device=device)[:, None, None]
    std_C11 = torch.tensor(std, device=device)[:, None, None]
    return (pictures_BCHW / 255 - mean_C11) / std_C11
