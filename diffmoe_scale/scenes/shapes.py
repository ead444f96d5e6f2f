"""Flat coloured shapes on a plain background, rendered at any resolution.

Places and sizes are in units of half the picture: x runs from -1 (left) to 1 (right), y from -1 (top) to 1
(bottom).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

BACKGROUND = (128, 128, 128)
"""Mid-grey, 0 in [-1, 1]: every colour then lies in a direction of its own, and half a colour is never
another one."""

COLORS = {
    "red": (230, 35, 35),
    "green": (30, 185, 60),
    "blue": (35, 70, 235),
    "yellow": (250, 220, 30),
    "purple": (180, 40, 215),
    "white": (255, 255, 255),
}

SQUARE_HALF_SIDE = 0.88
TRIANGLE_CIRCUMRADIUS = 1.25
STAR_OUTER, STAR_INNER = 1.2, 0.52
CROSS_LENGTH, CROSS_WIDTH = 1.1, 0.36


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, SQUARE_HALF_SIDE, SQUARE_HALF_SIDE)


def _triangle(x: Array, y: Array) -> Array:
    inradius = TRIANGLE_CIRCUMRADIUS / 2
    return np.maximum(y, math.sqrt(3) / 2 * np.abs(x) - y / 2) - inradius


def _star(x: Array, y: Array) -> Array:
    # All ten edges folded onto the one from a tip (angle 0) to the next notch (angle pi / 5).
    angle = np.abs((np.arctan2(x, -y) + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
    distance = np.hypot(x, y)
    notch_x, notch_y = STAR_INNER * math.cos(math.pi / 5), STAR_INNER * math.sin(math.pi / 5)
    length = math.hypot(STAR_OUTER - notch_x, notch_y)
    return (
        notch_y * (distance * np.cos(angle) - STAR_OUTER) + (STAR_OUTER - notch_x) * distance * np.sin(angle)
    ) / length


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(_box(x, y, CROSS_LENGTH, CROSS_WIDTH), _box(x, y, CROSS_WIDTH, CROSS_LENGTH))


@dataclass(frozen=True)
class Outline:
    """A shape of radius 1 with its centroid at the origin: signed distance (exact at the edges) and area."""

    distance: Callable[[Array, Array], Array]
    area: float


SHAPES = {
    "circle": Outline(_circle, math.pi),
    "square": Outline(_square, 4 * SQUARE_HALF_SIDE**2),
    "triangle": Outline(_triangle, 3 * math.sqrt(3) / 4 * TRIANGLE_CIRCUMRADIUS**2),
    "star": Outline(_star, 5 * STAR_OUTER * STAR_INNER * math.sin(math.pi / 5)),
    "cross": Outline(_cross, 8 * CROSS_LENGTH * CROSS_WIDTH - 4 * CROSS_WIDTH**2),
}

EXTENT = 1.25
"""No point of a shape of radius 1 is farther than this from its centroid."""


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape; `x`, `y` is its centroid."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


def coverage(
    shape: str, *, x: float, y: float, radius: float, size: int, columns: slice, rows: slice
) -> Array:
    """Fraction of each pixel of a window that the shape covers [rows, columns]; `size` pixels are the whole
    picture."""
    pixel = 2 / size
    centers = np.arange(size, dtype=np.float32) * pixel + (pixel / 2 - 1)
    offset_x = (centers[columns] - np.float32(x))[None, :] / np.float32(radius)
    offset_y = (centers[rows] - np.float32(y))[:, None] / np.float32(radius)
    grid_x, grid_y = np.broadcast_arrays(offset_x, offset_y)
    return np.clip(0.5 - SHAPES[shape].distance(grid_x, grid_y) * np.float32(radius / pixel), 0, 1)


def window(center: float, radius: float, size: int) -> slice:
    """The pixels along one axis that a shape of `radius` there can touch."""
    first = math.floor((center - EXTENT * radius + 1) / 2 * size) - 1
    last = math.ceil((center + EXTENT * radius + 1) / 2 * size) + 1
    return slice(max(first, 0), min(last, size))


def render(objects: Sequence[SceneObject], size: int) -> NDArray[np.uint8]:
    """The picture [size, size, 3] of objects that do not overlap, with smooth edges."""
    image_HWC = np.empty((size, size, 3), dtype=np.float32)
    image_HWC[:] = BACKGROUND
    for item in objects:
        columns, rows = window(item.x, item.radius, size), window(item.y, item.radius, size)
        alpha_HW = coverage(
            item.shape, x=item.x, y=item.y, radius=item.radius, size=size, columns=columns, rows=rows
        )
        part_HWC = image_HWC[rows, columns]
        part_HWC += alpha_HW[:, :, None] * (np.array(COLORS[item.color], dtype=np.float32) - part_HWC)
    return np.round(image_HWC).astype(np.uint8)
