import numpy as np
import pytest
import torch

from diffmoe_scale.scenes.scenes import draw_scene
from diffmoe_scale.scenes.suites import SUITES, build_suite, score_images, shuffled
from tests.report.pictures import draw_claims

DISTINCT = {
    "single_object": 5,
    "two_objects": 20,
    "counting": 15,
    "colors": 30,
    "position": 80,
    "color_attribution": 600,
}
CHANCE = {
    "single_object": 0.30,
    "two_objects": 0.25,
    "counting": 0.2,
    "colors": 0.12,
    "position": 0.08,
    "color_attribution": 0.05,
}
"""Bounds on chance for perfect pictures: one of 5, 10, 15, 30, 40 and 300 different claims, with room for 96
draws."""


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_a_function_of_name_number_and_seed(name: str) -> None:
    prompts = build_suite(name, num_prompts=96, seed=3)
    assert prompts == build_suite(name, num_prompts=96, seed=3)
    assert [prompt.text for prompt in prompts] != [
        prompt.text for prompt in build_suite(name, num_prompts=96, seed=4)
    ]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_repeats_no_prompt_before_all_were_asked(name: str) -> None:
    texts = [prompt.text for prompt in build_suite(name, num_prompts=700, seed=0)]
    assert len(set(texts)) == DISTINCT[name] == len(set(texts[: DISTINCT[name]]))


@pytest.mark.parametrize(
    "name, tag",
    [("two_objects", "two_object"), ("color_attribution", "color_attr"), ("counting", "counting")],
)
def test_metadata_is_genevals(name: str, tag: str) -> None:
    for prompt in build_suite(name, num_prompts=10, seed=0):
        assert prompt.metadata["tag"] == tag and prompt.metadata["prompt"] == prompt.text
        assert all(item["class"] and item["count"] >= 1 for item in prompt.metadata["include"])


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(ValueError, match="there is no suite 'colours'; expected one of single_object"):
        build_suite("colours", num_prompts=1, seed=0)


@pytest.mark.parametrize("name", ["two_objects", "counting", "colors", "position", "color_attribution"])
def test_suites_also_ask_for_what_training_never_shows(name: str) -> None:
    held_out = [
        prompt.metadata["held_out"] for prompt in build_suite(name, num_prompts=DISTINCT[name], seed=0)
    ]
    assert 0.05 < sum(held_out) / len(held_out) < 0.4


def test_prompts_are_worded_like_training_captions() -> None:
    captions = {
        word for index in range(500) for word in draw_scene(index, seed=0, level="easy").caption.split()
    }
    assert {
        word
        for name in SUITES
        for prompt in build_suite(name, num_prompts=100, seed=0)
        for word in prompt.text.split()
    } <= captions


@pytest.mark.parametrize("name", SUITES)
def test_perfect_pictures_score_one_and_shuffled_captions_only_chance(name: str) -> None:
    prompts = build_suite(name, num_prompts=96, seed=1)
    generator = np.random.default_rng(0)
    images = torch.from_numpy(
        np.stack([draw_claims(prompt.metadata["include"], generator) for prompt in prompts])
    )
    assert all(score_images(images, prompts))
    assert sum(score_images(images, shuffled(prompts))) / len(prompts) <= CHANCE[name]


@pytest.mark.parametrize("count", [2, 3, 96])
def test_shuffling_leaves_no_prompt_in_its_place(count: int) -> None:
    prompts = build_suite("color_attribution", num_prompts=count, seed=0)
    other = shuffled(prompts)
    assert sorted(prompt.text for prompt in other) == sorted(prompt.text for prompt in prompts)
    assert all(first.text != second.text for first, second in zip(prompts, other, strict=True))


@pytest.mark.parametrize("name", SUITES)
def test_noise_passes_no_prompt(name: str) -> None:
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert not any(score_images(images, build_suite(name, num_prompts=20, seed=0)))
