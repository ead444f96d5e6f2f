import torch
import torch.nn.functional as F

from diffmoe_scale.nn.patches import patchify, unpatchify


def test_patchify_and_a_matrix_are_a_strided_convolution() -> None:
    x_BCHW, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 2, 2)
    expected = F.conv2d(x_BCHW, weight, stride=2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x_BCHW, 2) @ weight.flatten(1).T, expected, rtol=1e-5, atol=1e-5)


def test_unpatchify_undoes_patches_in_row_column_channel_order() -> None:
    x_BCHW = torch.randn(2, 3, 4, 6)
    patches = [
        x_BCHW[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].permute(0, 2, 3, 1).flatten(1)
        for row in range(2)
        for column in range(3)
    ]
    assert torch.equal(unpatchify(torch.stack(patches, dim=1), patch=2, rows=2, columns=3), x_BCHW)
