"""A picture of four colours, which looks different in each orientation, and its decoding."""

import numpy as np
from PIL import Image

from diffmoe_scale.data.reading.pictures import Size, decode_image
from tests.data.samples import encode

WHITE = (255, 255, 255)
# Red, green / blue, white: each orientation of it looks different.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def decode(image: Image.Image, kind: str = "PNG", *, size: int = 2, **options: object) -> np.ndarray:
    return decode_image(encode(image, kind, **options), size=Size(size, size), background=WHITE).pixels_HWC
