"""Which images share a batch, of what size, and whose turn it is: pure functions of the position in a run.

A bucket holds the images whose aspect ratio (width over height) is nearest to its own; B of them. It has an
order of its own, epoch after epoch, and a step takes its next samples from one bucket: all images of a global
batch have one size on all ranks. What is left of a bucket at the end of an epoch begins its first batch of
the next, so that no place of a batch is padded.
"""

import math
from collections.abc import Sequence

import numpy as np

from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.reading.pictures import Size


def bucket_size(aspect: float, *, resolution: int, step: int) -> Size:
    """The size nearest to an aspect ratio in multiples of `step`, with at most the pixels of the square of
    `resolution`."""
    if aspect < 1:
        return Size(*reversed(bucket_size(1 / aspect, resolution=resolution, step=step)))
    below = int(resolution * aspect**0.5 / step) * step
    candidates = [Size(resolution**2 // width // step * step, width) for width in (below, below + step)]
    possible = [size for size in candidates if size.height > 0]
    if not possible:
        raise ValueError(
            f"buckets.step is {step}: too coarse for the aspect ratio {aspect:g} at a resolution of "
            f"{resolution}; take a divisor of {step}"
        )
    return min(possible, key=lambda size: abs(math.log(size.width / size.height / aspect)))


def nearest_bucket(sizes_RZ: np.ndarray, aspects: Sequence[float]) -> np.ndarray:
    """The bucket of each of R images of (height, width), by the ratio of the ratios; sizes of 0 (unknown)
    count as square."""
    logs = np.log(np.asarray(aspects))
    aspect_R = np.log(np.maximum(sizes_RZ[:, 1], 1)) - np.log(np.maximum(sizes_RZ[:, 0], 1))
    return np.searchsorted((logs[1:] + logs[:-1]) / 2, aspect_R).astype(np.uint8)


def cropped_share(sizes_RZ: np.ndarray, aspect_R: np.ndarray | float) -> np.ndarray:
    """The share of an image's pixels that is cut off to bring it to an aspect ratio."""
    ratio_R = np.maximum(sizes_RZ[:, 1], 1) / np.maximum(sizes_RZ[:, 0], 1) / aspect_R
    return 1 - np.minimum(ratio_R, 1 / ratio_R)


def full_sizes(buckets: BucketConfig, image_size: int) -> list[Size]:
    """Sizes of the images of each bucket at full resolution; of all images without buckets."""
    if not buckets.enabled:
        return [Size(image_size, image_size)]
    return [bucket_size(aspect, resolution=image_size, step=buckets.step) for aspect in buckets.aspects]
