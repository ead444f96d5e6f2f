"""Images to tokens and back.

B samples, N tokens a sample, P features of a token, C H W image or latents.
"""

import torch.nn.functional as F
from torch import Tensor


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """Tokens [B, N, C * patch * patch] of an image, row by row; the order within a token is that of a
    convolution's weight."""
    return F.unfold(x_BCHW, patch, stride=patch).transpose(1, 2)


def unpatchify(x_BNP: Tensor, *, patch: int, rows: int, columns: int) -> Tensor:
    """The image [B, C, H, W] of tokens whose features are ordered (patch row, patch column, channel), as
    DiT's last layer gives them."""
    batch = x_BNP.shape[0]
    x = x_BNP.reshape(batch, rows, columns, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)
