from collections import Counter

import numpy as np
import pytest

from diffmoe_scale.scenes.scenes import (
    HELD_OUT_COLORS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    PAIRS,
    Level,
    draw_scene,
    is_held_out,
    is_scene_caption,
    relation,
    sentence,
)
from diffmoe_scale.scenes.shapes import BACKGROUND, COLORS, EXTENT, SHAPES, SceneObject, coverage, render

EVERYTHING = {"columns": slice(None), "rows": slice(None)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_covers_its_area_about_its_centroid(name: str) -> None:
    size = 400
    alpha = coverage(name, x=0.1, y=-0.2, radius=0.5, size=size, **EVERYTHING)
    centers = (np.arange(size) + 0.5) * 2 / size - 1
    assert alpha.sum() * (2 / size) ** 2 == pytest.approx(SHAPES[name].area * 0.25, rel=2e-3)
    assert (alpha.sum(0) * centers).sum() / alpha.sum() == pytest.approx(0.1, abs=1e-3)
    assert (alpha.sum(1) * centers).sum() / alpha.sum() == pytest.approx(-0.2, abs=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_a_small_picture_is_the_average_of_a_large_one(name: str) -> None:
    item = SceneObject(name, "red", 0.07, -0.03, 0.5)
    large = render([item], 256).astype(np.float32).reshape(32, 8, 32, 8, 3).mean((1, 3))
    error = np.abs(render([item], 32) - large)
    # Straight edges agree; the pixel at a sharp tip is covered a little differently.
    assert error.mean() < 1 and error.max() < 60


@pytest.mark.parametrize("name", SHAPES)
def test_no_point_of_a_shape_lies_beyond_its_extent(name: str) -> None:
    alpha = coverage(name, x=0, y=0, radius=0.6, size=300, **EVERYTHING)
    centers = (np.arange(300) + 0.5) * 2 / 300 - 1
    assert np.hypot(*np.meshgrid(centers, centers))[alpha > 0.5].max() <= EXTENT * 0.6


def test_palette_colours_lie_in_directions_of_their_own() -> None:
    directions = np.array(list(COLORS.values()), dtype=float) - BACKGROUND
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines = directions @ directions.T - np.eye(len(COLORS))
    # 50 degrees and more between any two.
    assert cosines.max() < 0.65


@pytest.mark.parametrize("level", ["easy", "full"])
def test_a_scene_is_a_function_of_seed_and_index(level: Level) -> None:
    assert [draw_scene(index, seed=5, level=level) for index in (3, 1, 2)] == [
        draw_scene(index, seed=5, level=level) for index in (3, 1, 2)
    ]
    others = (
        draw_scene(3, seed=6, level=level),
        draw_scene(4, seed=5, level=level),
        draw_scene(3, seed=5, level=level, split="validation"),
    )
    assert all(other.objects != draw_scene(3, seed=5, level=level).objects for other in others)


@pytest.mark.parametrize("level", ["easy", "full"])
def test_objects_lie_inside_the_picture_and_two_pixels_apart(level: Level) -> None:
    for index in range(300):
        scene = draw_scene(index, seed=0, level=level)
        alphas = [
            coverage(item.shape, x=item.x, y=item.y, radius=item.radius, size=32, **EVERYTHING)
            for item in scene.objects
        ]
        assert all(
            np.concatenate([alpha[[0, -1]].ravel(), alpha[:, [0, -1]].ravel()]).max() < 0.5
            for alpha in alphas
        )
        assert np.sum([alpha > 0.5 for alpha in alphas], axis=0).max() <= 1
        image = render(scene.objects, 32)
        assert image.shape == (32, 32, 3) and (image != BACKGROUND).any(-1).sum() > 20


@pytest.mark.parametrize("level", ["easy", "full"])
def test_held_out_combinations_are_never_drawn(level: Level) -> None:
    for index in range(1000):
        scene = draw_scene(index, seed=0, level=level)
        shapes = Counter(item.shape for item in scene.objects)
        assert not HELD_OUT_COLORS & {(item.shape, item.color) for item in scene.objects}
        assert frozenset(shapes) not in HELD_OUT_PAIRS and not HELD_OUT_COUNTS & set(shapes.items())
        assert scene.metadata["held_out"] is False and not is_held_out(scene.metadata["include"])


def test_claims_of_held_out_combinations_are_recognized() -> None:
    assert is_held_out([{"class": "star", "color": "red", "count": 1}])
    assert is_held_out([{"class": "cross", "count": 1}, {"class": "triangle", "count": 1}])
    assert is_held_out([{"class": "star", "count": 3}])
    assert not is_held_out([{"class": "star", "count": 2}])


def test_captions_speak_plain_english() -> None:
    red_circle, square = {"class": "circle", "color": "red", "count": 1}, {"class": "square", "count": 1}
    assert sentence([red_circle]) == "a red circle"
    assert sentence([{"class": "triangle", "color": "green", "count": 3}]) == "three green triangles"
    assert sentence([{"class": "cross", "count": 2}]) == "two crosses"
    assert sentence([{"class": "object", "count": 1}]) == "an object"
    assert sentence([red_circle, square]) == "a red circle and a square"
    assert sentence([red_circle, square | {"position": ["left of", 0]}]) == "a square left of a red circle"


def test_all_kinds_of_captions_occur() -> None:
    tags = Counter(draw_scene(index, seed=0, level="easy").metadata["tag"] for index in range(1000))
    assert (
        set(tags) == {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
        and min(tags.values()) > 80
    )


def test_the_relation_of_two_places_is_genevals() -> None:
    assert relation((-0.5, 0.0), (0.5, 0.1), sizes=1.2) == {"left of"}
    assert relation((0.0, 0.5), (0.1, -0.5), sizes=1.2) == {"below"}
    assert relation((0.6, -0.6), (-0.6, 0.6), sizes=0.6) == {"right of", "above"}
    assert relation((0.05, 0.0), (0.0, 0.05), sizes=1.2) == frozenset()


def test_captions_of_scenes_are_told_from_others() -> None:
    levels: tuple[Level, ...] = ("easy", "full")
    for level in levels:
        for index in range(300):
            assert is_scene_caption(draw_scene(index, seed=1, level=level).caption)
    others = ["", "a cat", "the red circle", "a picture of", "red", "caption 0 1", "a circle of friends"]
    assert not any(is_scene_caption(text) for text in others)


def test_the_share_of_pairs_can_be_chosen_and_half_of_them_are_the_scenes_of_before() -> None:
    def pairs(share: float) -> float:
        scenes = [draw_scene(index, seed=0, level="easy", pairs=share) for index in range(300)]
        return sum(len({item.shape for item in scene.objects}) == 2 for scene in scenes) / 300

    assert pairs(0) == 0 and pairs(1) == 1 and 0.7 < pairs(0.75) < 0.8
    generator = np.random.default_rng([5, 0, 3])
    assert generator.choice(3, p=(0.3, 0.5, 0.2)) == np.random.default_rng([5, 0, 3]).choice(
        3, p=((1 - PAIRS) * 0.6, PAIRS, (1 - PAIRS) * 0.4)
    )
