import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.encoders.autoencoder.tiles import decode_in_tiles

FACTOR = 2


def enlarge(z_BCHW: Tensor) -> Tensor:
    """A decoder in which each number makes its own pixels."""
    return F.interpolate(z_BCHW[:, :3], scale_factor=FACTOR)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (8, 13), (31, 17), (5, 40), (14, 3)])
def test_a_decoder_without_context_gives_the_whole_picture(height: int, width: int) -> None:
    z_BCHW = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(0))
    shapes = []

    def decode(part_BCHW: Tensor) -> Tensor:
        shapes.append(tuple(part_BCHW.shape[2:]))
        return enlarge(part_BCHW)

    images_BCHW = decode_in_tiles(decode, z_BCHW, tile=8, factor=FACTOR)
    torch.testing.assert_close(images_BCHW, enlarge(z_BCHW))
    # None is larger than a tile, and all are alike.
    assert set(shapes) == {(min(8, height), min(8, width))}


def test_tiles_are_blended_linearly_where_they_overlap() -> None:
    # Tiles of columns 0 to 7 and 6 to 13 that are black and white: two shared columns are four pixels.
    brightness = iter((0.0, 1.0))
    row_W = decode_in_tiles(
        lambda part: torch.full_like(enlarge(part), next(brightness)),
        torch.zeros(1, 4, 1, 14),
        tile=8,
        factor=FACTOR,
    )[0, 0, 0]
    expected = [0.0] * 12 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 12
    torch.testing.assert_close(row_W, torch.tensor(expected))
