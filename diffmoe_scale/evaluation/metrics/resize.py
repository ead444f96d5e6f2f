"""How pictures are brought to the size of networks other than Inception.

B pictures, C colours, H W height and width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_rule(size: int) -> str:
    return f"torch's bicubic with antialias to {size} x {size}, rounded to 8 bits, proportions not kept"


def resize_bicubic(pictures_BCHW: Tensor, size: int) -> Tensor:
    """uint8 pictures as whole numbers 0 to 255 in float32, `size` high and wide. Pillow also rounds and clips
    between its two passes, whose order depends on its version."""
    exact_BCHW = pictures_BCHW.float()
    if exact_BCHW.shape[2:] == (size, size):
        return exact_BCHW
    return F.interpolate(exact_BCHW, (size, size), mode="bicubic", antialias=True).clamp(0, 255).round()


def normalize(pictures_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """From 0 to 255 to the numbers that a network was trained on; `mean` and `std` are of 0 to 1."""
    device = pictures_BCHW.device
    mean_C11 = torch.tensor(mean, device=device)[:, None, None]
    std_C11 = torch.tensor(std, device=device)[:, None, None]
    return (pictures_BCHW / 255 - mean_C11) / std_C11
