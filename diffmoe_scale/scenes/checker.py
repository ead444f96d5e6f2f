"""The analytic checker of the embedded data set: which shapes a picture shows, and whether that is what was
asked.

A pixel is read as a mix of the background and one palette colour; pixels of one colour that touch are an
object; its shape is the ideal one of the same centroid and area that overlaps it best. A picture passes only
if its objects are exactly those of the claims: every one found, of the right shape and colour and at the
right place, and no other object.

What is forgiven, so that an imperfect drawing of the right thing counts:
- the background may be off by MAX_BACKGROUND_ERROR in each channel, the colours shift with it;
- a pixel's colour may miss the palette's by MAX_COLOR_ERROR, and be paler than MIN_OPACITY only at the cost
of area;
- specks smaller than MIN_AREA of the picture are overlooked while all of them stay below MAX_SPECKS;
- an object may miss its ideal shape by 1 - MIN_OVERLAP of their union.
Shapes must be upright and must not touch.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffmoe_scale.scenes.scenes import Metadata, Requirement, relation
from diffmoe_scale.scenes.shapes import BACKGROUND, COLORS, SHAPES, coverage

MAX_BACKGROUND_ERROR = 0.25
"""Of the median of the picture's border, in [-1, 1]."""
MAX_COLOR_ERROR = 0.5
"""Distance in RGB of [-1, 1] from the line between background and palette colour; palette colours are at
least 1 apart."""
MIN_OPACITY = 0.5
"""Share of the palette colour from which a pixel belongs to an object."""
MIN_AREA = 0.008
"""Smallest object, as a fraction of the picture (8 pixels of 32 x 32); the smallest that is ever drawn has
0.02."""
MAX_SPECKS = 0.015
"""Largest fraction of the picture in specks too small to be objects."""
MIN_OVERLAP = 0.78
"""Least intersection over union with the ideal shape; circles and squares overlap each other by 0.83, other
shapes less."""
UNKNOWN = "unknown"
"""Shape or colour of an object that is none of ours."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class FoundObject:
    """An object of a picture; `x`, `y` its centroid and `radius` that of its shape, in units of half the
    picture."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    overlap: float


def find_objects(image_CHW: Array) -> list[FoundObject] | None:
    """All objects of a square picture in [-1, 1]; None where it is no scene: another background, or full of
    specks."""
    image_HWC = np.moveaxis(image_CHW, 0, -1).astype(np.float32)
    background = np.median(_border(image_HWC), axis=0)
    if np.abs(background - _scaled(BACKGROUND)).max() > MAX_BACKGROUND_ERROR:
        return None
    label_HW, opacity_HW = _unmix(image_HWC - background)
    objects, num_specks = [], 0
    for color in range(len(COLORS) + 1):
        components_HW, count = ndimage.label(label_HW == color)
        areas = np.bincount(components_HW.ravel(), minlength=count + 1)
        for component in range(1, count + 1):
            if areas[component] < MIN_AREA * label_HW.size:
                num_specks += int(areas[component])
                continue
            objects.append(_classify(components_HW == component, label_HW, opacity_HW, color))
    return objects if num_specks <= MAX_SPECKS * label_HW.size else None


def satisfies(objects: list[FoundObject] | None, include: list[Requirement]) -> bool:
    """Whether the objects are exactly the claimed ones, in some assignment."""
    wanted = [(item, group) for group, item in enumerate(include) for _ in range(item["count"])]
    if objects is None or len(objects) != len(wanted) or any(item.shape == UNKNOWN for item in objects):
        return False
    return any(_matches(order, wanted) for order in permutations(objects))


def check(image_CHW: Array, metadata: Metadata) -> bool:
    """Whether a picture in [-1, 1] shows what its metadata claims, and nothing else."""
    return satisfies(find_objects(image_CHW), metadata["include"])


def _scaled(color: tuple[int, int, int]) -> Array:
    return np.array(color, dtype=np.float32) / 127.5 - 1


def _border(image_HWC: Array) -> Array:
    return np.concatenate([image_HWC[0], image_HWC[-1], image_HWC[:, 0], image_HWC[:, -1]])


def _unmix(offset_HWC: Array) -> tuple[NDArray[np.int64], Array]:
    """For each pixel's offset from the background: its palette colour, and how much of it.

    The colour is -1 for background and the number of colours for an object of no palette colour.
    """
    palette_KC = np.stack([_scaled(color) for color in COLORS.values()]) - _scaled(BACKGROUND)
    opacity_HWK = np.clip(offset_HWC @ palette_KC.T / np.square(palette_KC).sum(1), 0, 1)
    error_HWK = np.linalg.norm(offset_HWC[:, :, None] - opacity_HWK[..., None] * palette_KC, axis=-1)
    best_HW = error_HWK.argmin(-1)
    opacity_HW = np.take_along_axis(opacity_HWK, best_HW[..., None], -1)[..., 0]
    error_HW = np.take_along_axis(error_HWK, best_HW[..., None], -1)[..., 0]
    label_HW = np.where(opacity_HW >= MIN_OPACITY, best_HW, -1)
    return np.where(error_HW > MAX_COLOR_ERROR, len(COLORS), label_HW), opacity_HW


def _sharpened(opacity: Array) -> Array:
    """Opacity with twice the contrast: noise near 0 and 1 is gone, half-covered edge pixels still count by
    how much."""
    return np.clip(2 * opacity - 0.5, 0, 1)


def _classify(
    mask_HW: NDArray[np.bool_], label_HW: NDArray[np.int64], opacity_HW: Array, color: int
) -> FoundObject:
    """The object of a component: its edge pixels are those around it that belong to no other component."""
    size = mask_HW.shape[0]
    near_HW = ndimage.binary_dilation(mask_HW, np.ones((3, 3))) & ((label_HW == -1) | mask_HW)
    weight_HW = np.where(near_HW, _sharpened(opacity_HW), 0)
    total = max(float(weight_HW.sum()), 1.0)
    centers = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = (
        float((weight_HW.sum(0) * centers).sum() / total),
        float((weight_HW.sum(1) * centers).sum() / total),
    )
    area = total * (2 / size) ** 2
    radii = {name: float(np.sqrt(area / shape.area)) for name, shape in SHAPES.items()}
    overlap, shape = max(
        (_overlap(weight_HW, name, x=x, y=y, radius=radius), name) for name, radius in radii.items()
    )
    is_known = overlap >= MIN_OVERLAP and color < len(COLORS)
    return FoundObject(shape if is_known else UNKNOWN, [*COLORS, UNKNOWN][color], x, y, radii[shape], overlap)


def _overlap(weight_HW: Array, shape: str, *, x: float, y: float, radius: float) -> float:
    """Intersection over union with the ideal shape, edge pixels by how much they are covered."""
    everything = slice(None)
    ideal_HW = _sharpened(
        coverage(shape, x=x, y=y, radius=radius, size=weight_HW.shape[0], columns=everything, rows=everything)
    )
    return float(np.minimum(weight_HW, ideal_HW).sum() / np.maximum(weight_HW, ideal_HW).sum())


def _matches(order: tuple[FoundObject, ...], wanted: list[tuple[Requirement, int]]) -> bool:
    return all(
        _is_a(found, item) and _is_placed(found, item, order, wanted)
        for found, (item, _) in zip(order, wanted, strict=True)
    )


def _is_a(found: FoundObject, item: Requirement) -> bool:
    return item["class"] in ("object", found.shape) and item.get("color", found.color) == found.color


def _is_placed(
    found: FoundObject,
    item: Requirement,
    order: tuple[FoundObject, ...],
    wanted: list[tuple[Requirement, int]],
) -> bool:
    if "position" not in item:
        return True
    word, reference = item["position"]
    others = [other for other, (_, group) in zip(order, wanted, strict=True) if group == reference]
    return all(
        word in relation((found.x, found.y), (other.x, other.y), sizes=2 * (found.radius + other.radius))
        for other in others
    )
