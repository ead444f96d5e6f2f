"""The embedded data set: pictures of a few coloured shapes, captions in plain English, and what each caption
claims.

What a caption claims is kept in the format of GenEval (arXiv 2310.11513): a list of {class, count, color,
position}, where position is [relation, index of the reference object in the list]. The class `object` stands
for any shape.

Level `easy`: one large object near the centre, or two to four of medium size on a loose grid. Level `full`:
any place, and small objects too.

Held out: the combinations below are never in a training or validation picture; the evaluation suites ask for
them.
"""

import itertools
import math
import re
from dataclasses import dataclass
from typing import Any, Literal  # Any: claims in the form of GenEval's JSON

import numpy as np

from diffmoe_scale.scenes.shapes import COLORS, EXTENT, SHAPES, SceneObject

Level = Literal["easy", "full"]
Split = Literal["train", "validation"]
Requirement = dict[str, Any]  # Any: a JSON object of GenEval's format
Metadata = dict[str, Any]  # Any: as above

HELD_OUT_COLORS = frozenset({("star", "red"), ("triangle", "blue"), ("cross", "yellow")})
HELD_OUT_PAIRS = frozenset({frozenset({"triangle", "cross"})})
HELD_OUT_COUNTS = frozenset({("star", 3)})

RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("no", "a", "two", "three", "four")
MAX_COUNT = 4
TEMPLATES = ("a picture of {}", "a drawing of {}", "{} on a grey background", "an image with {}")
PAIRS = 0.5
"""Fraction of the pictures that show two different objects, unless another is asked for; three in five of the
others show one, the rest several of a kind."""
PLAIN_CAPTIONS = 0.75
"""Fraction of captions that are in no template."""
STATED_POSITIONS = 0.35
"""Fraction of the captions of two named objects that say where they are."""
GAP = 0.13
"""Least distance between two objects: two pixels of a 32 x 32 picture."""


@dataclass(frozen=True)
class Scene:
    """The objects of a picture and the caption's claims: {tag, include, prompt, held_out, objects}."""

    objects: tuple[SceneObject, ...]
    metadata: Metadata

    @property
    def caption(self) -> str:
        return str(self.metadata["prompt"])


def draw_scene(index: int, *, seed: int, level: Level, split: Split = "train", pairs: float = PAIRS) -> Scene:
    """Sample number `index` of a split: a pure function of its arguments."""
    generator = np.random.default_rng([seed, 0 if split == "train" else 1, index])
    kind = generator.choice(("single", "two", "counting"), p=((1 - pairs) * 0.6, pairs, (1 - pairs) * 0.4))
    objects = _draw_objects(generator, kind, level)
    tag, include = _draw_claims(generator, kind, objects)
    caption = sentence(include)
    if generator.random() > PLAIN_CAPTIONS:
        caption = str(generator.choice(TEMPLATES)).format(caption)
    facts = [
        {
            "class": item.shape,
            "color": item.color,
            "x": round(item.x, 4),
            "y": round(item.y, 4),
            "radius": round(item.radius, 4),
        }
        for item in objects
    ]
    return Scene(
        objects, {"tag": tag, "include": include, "prompt": caption, "held_out": False, "objects": facts}
    )


def is_held_out(include: list[Requirement]) -> bool:
    """Whether a picture of these claims shows a combination that training never shows."""
    shapes = frozenset(item["class"] for item in include)
    return (
        shapes in HELD_OUT_PAIRS
        or any((item["class"], item.get("color")) in HELD_OUT_COLORS for item in include)
        or any((item["class"], item["count"]) in HELD_OUT_COUNTS for item in include)
    )


def sentence(include: list[Requirement]) -> str:
    """The claims in plain English: "a blue square left of a red circle", "three green triangles"."""
    phrases = [_phrase(item) for item in include]
    if len(include) == 2 and "position" in include[1]:
        return f"{phrases[1]} {include[1]['position'][0]} {phrases[0]}"
    return " and ".join(phrases)


def scene_words() -> list[str]:
    """The names of shapes and colours."""
    return [*SHAPES, *COLORS]


def is_scene_caption(text: str) -> bool:
    """Whether a text consists of the words of the captions above, with at least one shape."""
    words = re.findall(r"\w+", text.lower())
    return bool(_WORDS.issuperset(words) and _SHAPE_WORDS.intersection(words))


_SHAPE_WORDS = frozenset(word + end for word in (*SHAPES, "object") for end in ("", "s", "es"))
_WORDS = _SHAPE_WORDS.union(
    COLORS, NUMBERS, ("an", "and"), *(text.split() for text in (*RELATIONS, *TEMPLATES))
)


def _phrase(item: Requirement) -> str:
    number = NUMBERS[item["count"]]
    words = [item["color"]] if "color" in item else []
    plural = "es" if item["class"].endswith("s") else "s"
    words.append(item["class"] + ("" if item["count"] == 1 else plural))
    if number == "a" and words[0][0] in "aeiou":
        number = "an"
    return " ".join([number, *words])


def relation(first: tuple[float, float], second: tuple[float, float], *, sizes: float) -> frozenset[str]:
    """Where `first` is, seen from `second`: GenEval's rule on two centres (x, y), `sizes` being their widths
    together.

    Empty when they are about in the same place; two words may hold on a diagonal.
    """
    offset = np.subtract(first, second)
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * sizes, 0)
    across, down = beyond / max(float(np.linalg.norm(offset)), 1e-6)
    holds = (across < -0.5, across > 0.5, down < -0.5, down > 0.5)
    return frozenset(word for word, is_true in zip(RELATIONS, holds, strict=True) if is_true)


def _draw_objects(generator: np.random.Generator, kind: str, level: Level) -> tuple[SceneObject, ...]:
    shapes, colors = _draw_classes(generator, kind)
    layout = _easy_layout if level == "easy" else _full_layout
    return tuple(
        SceneObject(shape, color, x, y, radius)
        for shape, color, (x, y, radius) in zip(shapes, colors, layout(generator, len(shapes)), strict=True)
    )


def _draw_classes(generator: np.random.Generator, kind: str) -> tuple[list[str], list[str]]:
    """Shapes and colours of a scene's objects, without the held-out combinations."""
    while True:
        match kind:
            case "single":
                shapes, colors = [str(generator.choice(list(SHAPES)))], [str(generator.choice(list(COLORS)))]
            case "two":
                shapes = generator.choice(list(SHAPES), 2, replace=False).tolist()
                colors = generator.choice(list(COLORS), 2).tolist()
            case _:
                count = int(generator.integers(2, MAX_COUNT + 1))
                shapes, colors = (
                    [str(generator.choice(list(SHAPES)))] * count,
                    [str(generator.choice(list(COLORS)))] * count,
                )
        include = [
            {"class": shape, "color": color, "count": shapes.count(shape)}
            for shape, color in zip(shapes, colors, strict=True)
        ]
        if not is_held_out(include):
            return shapes, colors


def _easy_layout(generator: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object: large at the centre, or medium on the four cells of a loose grid."""
    if count == 1:
        x, y = generator.uniform(-0.06, 0.06, 2)
        return [(float(x), float(y), float(generator.uniform(0.5, 0.58)))]
    if count == 2:
        # Side by side or one above the other, on a common axis.
        places = [(-0.5, 0.0), (0.5, 0.0)] if generator.random() < 0.5 else [(0.0, -0.5), (0.0, 0.5)]
    else:
        places = list(itertools.product((-0.5, 0.5), (-0.5, 0.5)))
    order = generator.permutation(len(places))[:count]
    radius = float(generator.uniform(0.29, 0.35))
    jitter = generator.uniform(-0.03, 0.03, (count, 2))
    return [
        (places[place][0] + float(dx), places[place][1] + float(dy), radius)
        for place, (dx, dy) in zip(order, jitter, strict=True)
    ]


def _full_layout(generator: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object: anywhere in the picture, GAP apart."""
    largest = (0, 0.7, 0.4, 0.33, 0.3)[count]
    while True:
        radii = np.exp(generator.uniform(math.log(0.22), math.log(largest), count))
        reach = 1 - GAP / 2 - EXTENT * radii
        places = generator.uniform(-1, 1, (count, 2)) * reach[:, None]
        if all(
            np.linalg.norm(places[i] - places[j]) >= EXTENT * (radii[i] + radii[j]) + GAP
            for i, j in itertools.combinations(range(count), 2)
        ):
            return [(float(x), float(y), float(radius)) for (x, y), radius in zip(places, radii, strict=True)]


def _draw_claims(
    generator: np.random.Generator, kind: str, objects: tuple[SceneObject, ...]
) -> tuple[str, list[Requirement]]:
    """A GenEval tag and what the caption tells of the objects: shapes, colours, both or only their number."""
    chances = (0.4, 0.5, 0.05, 0.05) if kind != "two" else (0.4, 0.55, 0.0, 0.05)
    named = str(generator.choice(("shape", "both", "color", "number"), p=chances))
    if kind != "two" or named == "number":
        first = objects[0]
        claim: Requirement = {
            "class": first.shape if named in ("shape", "both") else "object",
            "count": len(objects),
        }
        if named in ("both", "color"):
            claim["color"] = first.color
        return ("counting" if len(objects) > 1 else "single_object" if named == "shape" else "colors"), [
            claim
        ]
    order = [objects[place] for place in generator.permutation(2)]
    include: list[Requirement] = [
        {"class": item.shape, "count": 1} | ({"color": item.color} if named == "both" else {})
        for item in order
    ]
    word = _clear_relation(order[1], order[0])
    if word and generator.random() < STATED_POSITIONS:
        include[1]["position"] = [word, 0]
        return "position", include
    return ("color_attr" if named == "both" else "two_object"), include


def _clear_relation(first: SceneObject, second: SceneObject) -> str:
    """The word for where `first` is, seen from `second`; empty on a diagonal, where a reader could doubt."""
    across, down = first.x - second.x, first.y - second.y
    if max(abs(across), abs(down)) < 1.5 * min(abs(across), abs(down)):
        return ""
    if abs(across) > abs(down):
        return "left of" if across < 0 else "right of"
    return "above" if down < 0 else "below"
