import numpy as np
import pytest
import torch
from PIL import Image

from diffmoe_scale.evaluation.metrics.resize import normalize, resize_bicubic
from tests.evaluation.metrics.networks import blobs


@pytest.mark.parametrize(("side", "size"), [(64, 96), (130, 61), (48, 48)])
def test_smooth_pictures_are_resized_nearly_as_by_pillow(side, size):
    picture_HWC = blobs(1, seed=0, side=side)[0]
    ours = resize_bicubic(torch.from_numpy(picture_HWC).permute(2, 0, 1)[None], size)
    pillow = Image.fromarray(picture_HWC).resize((size, size), Image.Resampling.BICUBIC)
    difference_HWC = np.abs(ours[0].permute(1, 2, 0).numpy() - np.asarray(pillow, dtype=np.float32))
    assert difference_HWC.max() <= 2 and difference_HWC.mean() < 0.3


def test_normalized_pictures_have_the_networks_mean_and_deviation():
    pictures_BCHW = torch.tensor([0.0, 255.0, 51.0]).view(1, 3, 1, 1)
    found = normalize(pictures_BCHW, (0.5, 0.5, 0.1), (0.5, 0.25, 0.2))
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 2.0, 0.5]))
