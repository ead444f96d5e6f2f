"""Six suites of prompts after GenEval (arXiv 2310.11513), about the embedded scenes, and their scores.

| suite | prompt | a picture passes if it shows nothing else than |
|---|---|---|
| single_object | a circle | one such shape, of any colour |
| two_objects | a circle and a star | these two shapes, of any colours |
| counting | three squares | that many of them, 2 to 4 |
| colors | a red circle | one such shape of that colour |
| position | a circle left of a star | both shapes, so placed (GenEval's rule) |
| color_attribution | a red circle and a blue star | both shapes, each of its own colour |

A suite asks for all its combinations in random order before it repeats one; those that training never shows
are among them and marked `held_out` in the prompt's metadata.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffmoe_scale.scenes.checker import find_objects, satisfies
from diffmoe_scale.scenes.scenes import MAX_COUNT, RELATIONS, Metadata, Requirement, is_held_out, sentence
from diffmoe_scale.scenes.shapes import COLORS, SHAPES

GENEVAL_TAGS = {
    "single_object": "single_object",
    "two_objects": "two_object",
    "counting": "counting",
    "colors": "colors",
    "position": "position",
    "color_attribution": "color_attr",
}
SUITES = tuple(GENEVAL_TAGS)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked to draw, and what the picture must show: {tag, include, prompt, held_out}."""

    text: str
    metadata: Metadata


def build_suite(name: str, num_prompts: int, seed: int) -> list[Prompt]:
    """`num_prompts` prompts of a suite: a pure function of the arguments.

    Raises: ValueError if there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; expected one of {', '.join(SUITES)}")
    everything = list(_combinations(name))
    generator = np.random.default_rng([seed, SUITES.index(name)])
    chosen: list[list[Requirement]] = []
    while len(chosen) < num_prompts:
        chosen += [everything[place] for place in generator.permutation(len(everything))]
    return [_prompt(name, include) for include in chosen[:num_prompts]]


def score_images(images_BCHW: Tensor, prompts: Sequence[Prompt]) -> list[bool]:
    """Whether each picture in [-1, 1] shows exactly what its prompt claims."""
    images = images_BCHW.float().cpu().numpy()
    return [
        satisfies(find_objects(image), prompt.metadata["include"])
        for image, prompt in zip(images, prompts, strict=True)
    ]


def shuffled(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in another order, none in its own place: scoring the same pictures against it tells what
    chance gives.

    Where a suite has few combinations, a picture may meet another prompt of the same words; that is part of
    chance.
    """
    # A random cycle (Sattolo's algorithm) leaves nothing in place.
    generator = np.random.default_rng(len(prompts))
    order = list(range(len(prompts)))
    for last in range(len(order) - 1, 0, -1):
        other = int(generator.integers(last))
        order[last], order[other] = order[other], order[last]
    return [prompts[place] for place in order]


def _prompt(name: str, include: list[Requirement]) -> Prompt:
    text = sentence(include)
    return Prompt(
        text,
        {"tag": GENEVAL_TAGS[name], "include": include, "prompt": text, "held_out": is_held_out(include)},
    )


def _combinations(name: str) -> Iterator[list[Requirement]]:
    """The claims of every prompt that a suite can ask."""
    match name:
        case "single_object":
            yield from ([{"class": shape, "count": 1}] for shape in SHAPES)
        case "two_objects":
            yield from (
                [{"class": first, "count": 1}, {"class": second, "count": 1}]
                for first, second in itertools.permutations(SHAPES, 2)
            )
        case "counting":
            yield from (
                [{"class": shape, "count": count}] for shape in SHAPES for count in range(2, MAX_COUNT + 1)
            )
        case "colors":
            yield from (
                [{"class": shape, "count": 1, "color": color}] for shape in SHAPES for color in COLORS
            )
        case "position":
            for first, second in itertools.permutations(SHAPES, 2):
                yield from (
                    [{"class": first, "count": 1}, {"class": second, "count": 1, "position": [word, 0]}]
                    for word in RELATIONS
                )
        case "color_attribution":
            for (first, second), (one, other) in itertools.product(
                itertools.permutations(SHAPES, 2), itertools.permutations(COLORS, 2)
            ):
                yield [
                    {"class": first, "count": 1, "color": one},
                    {"class": second, "count": 1, "color": other},
                ]
