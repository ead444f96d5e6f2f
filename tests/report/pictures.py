"""Pictures that show what a prompt asks for, also the combinations that the data set never draws."""

import numpy as np
from numpy.typing import NDArray

from diffmoe_scale.scenes.scenes import Requirement
from diffmoe_scale.scenes.shapes import COLORS, SceneObject, render

PLACES = {
    "left of": ((0.5, 0.0), (-0.5, 0.0)),
    "right of": ((-0.5, 0.0), (0.5, 0.0)),
    "above": ((0.0, 0.5), (0.0, -0.5)),
    "below": ((0.0, -0.5), (0.0, 0.5)),
}
CELLS = ((-0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (0.5, -0.5))


def to_unit(image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A rendered picture as models see it: [3, H, W] in [-1, 1]."""
    return np.moveaxis(image_HWC, -1, 0).astype(np.float32) / 127.5 - 1


def draw_claims(
    include: list[Requirement], generator: np.random.Generator, *, size: int = 32, radius: float = 0.32
) -> NDArray[np.float32]:
    """A picture of the claims, with any shapes and colours they leave open."""
    wanted = [item for item in include for _ in range(item["count"])]
    relation = include[-1].get("position", [None])[0]
    places = PLACES[relation] if relation else CELLS
    objects = [
        SceneObject(item["class"], item.get("color", str(generator.choice(list(COLORS)))), x, y, radius)
        for item, (x, y) in zip(wanted, places, strict=False)
    ]
    return to_unit(render(objects, size))
