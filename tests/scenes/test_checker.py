import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from diffmoe_scale.scenes.checker import MIN_OVERLAP, UNKNOWN, check, find_objects, satisfies
from diffmoe_scale.scenes.scenes import Level, Requirement, draw_scene
from diffmoe_scale.scenes.shapes import BACKGROUND, COLORS, SHAPES, SceneObject, coverage, render
from tests.report.pictures import to_unit

NUM_SCENES = 150
RED_CIRCLE: list[Requirement] = [{"class": "circle", "color": "red", "count": 1}]


def _picture(*objects: SceneObject, size: int = 32) -> NDArray[np.float32]:
    return to_unit(render(objects, size))


def _is_right(image_CHW: NDArray[np.float32], include: list[Requirement]) -> bool:
    return satisfies(find_objects(image_CHW), include)


def _blank(value: tuple[int, int, int] = BACKGROUND) -> NDArray[np.float32]:
    return to_unit(np.full((32, 32, 3), value, dtype=np.uint8))


@pytest.mark.parametrize("level", ["easy", "full"])
@pytest.mark.parametrize("size", [32, 64])
def test_every_rendered_scene_is_read_exactly(level: Level, size: int) -> None:
    for index in range(NUM_SCENES):
        scene = draw_scene(index, seed=1, level=level)
        found = find_objects(to_unit(render(scene.objects, size)))
        assert found is not None
        assert sorted((item.shape, item.color) for item in found) == sorted(
            (item.shape, item.color) for item in scene.objects
        )
        for item in scene.objects:
            nearest = min(found, key=lambda other: (other.x - item.x) ** 2 + (other.y - item.y) ** 2)
            assert (nearest.shape, nearest.color) == (item.shape, item.color)
            # Half a pixel of 32, and a tenth in size.
            assert (
                max(abs(nearest.x - item.x), abs(nearest.y - item.y)) < 1 / 32
                and abs(nearest.radius / item.radius - 1) < 0.1
            )
        assert satisfies(found, scene.metadata["include"])


@pytest.mark.parametrize("size", [32, 64])
def test_noise_blur_and_a_colour_cast_are_forgiven(size: int) -> None:
    generator = np.random.default_rng(0)
    passed = 0
    for index in range(NUM_SCENES):
        scene = draw_scene(index, seed=2, level="easy")
        image = ndimage.gaussian_filter(
            to_unit(render(scene.objects, size)), (0, 0.5 * size / 32, 0.5 * size / 32)
        )
        image = image + generator.normal(0, 0.1, image.shape) + generator.uniform(-0.1, 0.1, (3, 1, 1))
        passed += check(image.astype(np.float32), scene.metadata)
    assert passed >= 0.98 * NUM_SCENES


def test_a_scene_fails_the_captions_of_other_scenes() -> None:
    scenes = [draw_scene(index, seed=3, level="easy") for index in range(100)]
    found = [find_objects(to_unit(render(scene.objects, 32))) for scene in scenes]
    for objects, scene in itertools.product(found, scenes):
        assert objects is not None
        shown = {(item.shape, item.color) for item in objects}
        named = [item for item in scene.metadata["include"] if item["class"] != "object"]
        is_shown = all(
            any(item["class"] == shape and item.get("color", color) == color for shape, color in shown)
            for item in named
        )
        has_count = len(objects) == sum(item["count"] for item in scene.metadata["include"])
        assert not satisfies(objects, scene.metadata["include"]) or (is_shown and has_count)


@pytest.mark.parametrize("value", [BACKGROUND, (0, 0, 0), (255, 255, 255), COLORS["red"]])
def test_a_blank_picture_fails(value: tuple[int, int, int]) -> None:
    assert not _is_right(_blank(value), RED_CIRCLE) and not _is_right(
        _blank(value), [{"class": "object", "count": 1}]
    )


@pytest.mark.parametrize("spread", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("smoothing", [0, 1, 2, 4])
def test_noise_shows_no_named_shape_and_colour(spread: float, smoothing: float) -> None:
    generator = np.random.default_rng(4)
    for _ in range(10):
        image = ndimage.gaussian_filter(generator.normal(0, 1, (3, 32, 32)), (0, smoothing, smoothing))
        image = (image / image.std() * spread).clip(-1, 1).astype(np.float32)
        found = find_objects(image)
        assert not any(
            satisfies(found, [{"class": shape, "color": color, "count": 1}])
            for shape in SHAPES
            for color in COLORS
        )


def test_blobs_of_palette_colours_are_seldom_taken_for_shapes() -> None:
    generator = np.random.default_rng(5)
    taken = 0
    for _ in range(100):
        field = ndimage.gaussian_filter(generator.normal(0, 1, (32, 32)), 3)
        rows, columns = np.mgrid[-1:1:32j, -1:1:32j]
        mask = field / field.std() - 4 * np.hypot(rows, columns) ** 2 > -0.7
        image = _blank()
        image[:, mask] = (np.array(COLORS["red"]) / 127.5 - 1)[:, None]
        found = find_objects(image)
        taken += found is not None and len(found) == 1 and found[0].shape != UNKNOWN
    assert taken <= 20


def test_an_extra_object_fails_the_picture() -> None:
    circle = SceneObject("circle", "red", -0.5, 0.0, 0.32)
    assert _is_right(_picture(circle), RED_CIRCLE)
    assert not _is_right(_picture(circle, SceneObject("square", "blue", 0.5, 0.0, 0.32)), RED_CIRCLE)
    assert not _is_right(_picture(circle, SceneObject("circle", "red", 0.5, 0.0, 0.32)), RED_CIRCLE)


def test_a_scribble_beside_the_object_fails_the_picture() -> None:
    image = _picture(SceneObject("circle", "red", -0.4, 0.0, 0.4))
    image[:, 4:8, 24:28] = (np.array(COLORS["blue"]) / 127.5 - 1)[:, None, None]
    assert not _is_right(image, RED_CIRCLE)


def test_a_small_speck_is_overlooked() -> None:
    image = _picture(SceneObject("circle", "red", -0.4, 0.0, 0.4))
    image[:, 4:6, 24:26] = 1.0
    assert _is_right(image, RED_CIRCLE)


@pytest.mark.parametrize("color", [(230, 130, 35), (0, 0, 0), (35, 220, 220), (110, 60, 20)])
def test_a_colour_outside_the_palette_fails(color: tuple[int, int, int]) -> None:
    alpha = coverage("circle", x=0, y=0, radius=0.5, size=32, columns=slice(None), rows=slice(None))
    paint = (np.array(color, dtype=np.float32) / 127.5 - 1)[:, None, None]
    image = (_blank() * (1 - alpha) + paint * alpha).astype(np.float32)
    assert not any(_is_right(image, [{"class": "circle", "color": name, "count": 1}]) for name in COLORS)


def test_an_object_of_two_colours_fails() -> None:
    image = _picture(SceneObject("circle", "red", 0.0, 0.0, 0.5))
    image[:, :, 16:] = _picture(SceneObject("circle", "blue", 0.0, 0.0, 0.5))[:, :, 16:]
    assert not _is_right(image, RED_CIRCLE) and not _is_right(image, [{"class": "circle", "count": 1}])


@pytest.mark.parametrize("first, second", list(itertools.permutations(SHAPES, 2)))
def test_a_cross_between_two_shapes_half_and_half_is_at_most_one_of_them(first: str, second: str) -> None:
    everything = {"columns": slice(None), "rows": slice(None)}
    alpha = 0.5 * sum(
        coverage(shape, x=0, y=0, radius=0.5, size=32, **everything) for shape in (first, second)
    )
    image = (
        _blank() * (1 - alpha)
        + (np.array(COLORS["red"], dtype=np.float32) / 127.5 - 1)[:, None, None] * alpha
    )
    assert sum(_is_right(image, [{"class": shape, "count": 1}]) for shape in SHAPES) <= 1


def test_a_ring_and_a_half_circle_are_no_circle() -> None:
    whole, hole = (
        _picture(SceneObject("circle", "red", 0.0, 0.0, 0.5)),
        _picture(SceneObject("circle", "red", 0.0, 0.0, 0.3)),
    )
    ring = np.where(np.abs(hole - _blank()).max(0) > 0.5, _blank(), whole)
    half = whole.copy()
    half[:, 16:] = _blank()[:, 16:]
    assert not _is_right(ring, RED_CIRCLE) and not _is_right(half, RED_CIRCLE)


def test_two_ideal_shapes_of_one_area_overlap_less_than_two_drawings_of_one() -> None:
    size, everything = 256, {"columns": slice(None), "rows": slice(None)}
    overlaps = {}
    for first, second in itertools.combinations(SHAPES, 2):
        one, other = (
            coverage(name, x=0, y=0, radius=float(np.sqrt(0.5 / SHAPES[name].area)), size=size, **everything)
            for name in (first, second)
        )
        overlaps[first, second] = np.minimum(one, other).sum() / np.maximum(one, other).sum()
    assert max(overlaps.values()) < 0.85 and {
        pair for pair, value in overlaps.items() if value > MIN_OVERLAP
    } == {("circle", "square")}


@pytest.mark.parametrize(
    "word, x, y", [("left of", -0.5, 0.0), ("right of", 0.5, 0.0), ("above", 0.0, -0.5), ("below", 0.0, 0.5)]
)
def test_a_position_is_read_from_the_picture(word: str, x: float, y: float) -> None:
    image = _picture(SceneObject("star", "white", x, y, 0.32), SceneObject("square", "green", -x, -y, 0.32))
    true = [{"class": "square", "count": 1}, {"class": "star", "count": 1, "position": [word, 0]}]
    swapped = [{"class": "star", "count": 1}, {"class": "square", "count": 1, "position": [word, 0]}]
    assert _is_right(image, true) and not _is_right(image, swapped)


def test_colours_must_not_change_places() -> None:
    image = _picture(
        SceneObject("star", "white", -0.5, 0.0, 0.32), SceneObject("square", "green", 0.5, 0.0, 0.32)
    )
    assert _is_right(
        image,
        [{"class": "star", "color": "white", "count": 1}, {"class": "square", "color": "green", "count": 1}],
    )
    assert not _is_right(
        image,
        [{"class": "star", "color": "green", "count": 1}, {"class": "square", "color": "white", "count": 1}],
    )
