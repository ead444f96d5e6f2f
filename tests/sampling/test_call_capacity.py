"""Means of the capacity of calls, and that drawing notes each of them."""

from dataclasses import replace

import pytest
import torch

from diffmoe_scale.config.sampling import SamplerName, SamplingConfig
from diffmoe_scale.sampling.call_capacity import CallCapacity, CapacityProfile, kind_of_caption
from tests.sampling.models import STEPS, build, config, generate


def test_means_are_by_half_time_layer_kind_and_picture() -> None:
    calls = [
        CallCapacity(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), [1.0, 1.0], [0, 1], True),
        CallCapacity(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), [1.0, 1.0], [0, 1], False),
        CallCapacity(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), [0.5, 0.5], [0, 1], True),
    ]
    profile = CapacityProfile()
    profile.add(calls, kinds=["a", "b"], prompts=["one", "two"])
    last = CallCapacity(torch.tensor([[2.0], [2.0]]), [0.5], [0], True)
    profile.add([last], kinds=["a"], prompts=["three"])
    conditional, unconditional = profile.halves["conditional"], profile.halves["unconditional"]
    assert conditional.times == [1.0, 0.5]
    assert conditional.capacity_TL[0] == [1.5, 3.5]
    assert conditional.capacity_TL[1] == pytest.approx([4 / 3, 4 / 3])
    assert (unconditional.times, unconditional.capacity_TL) == ([1.0], [[0.5, 0.5]])
    # Both halves count.
    assert profile.kinds["a"].capacity_TL == [[1.0], [1.5]]
    assert profile.kinds["b"].capacity_TL == [[2.0], [1.0]]
    found = {picture.prompt: picture.capacity for picture in profile.pictures}
    assert found == pytest.approx({"one": 1.0, "two": 5 / 3, "three": 2.0})
    assert profile.mean_of_kind("a") == (1.5, 0.5, 2)
    assert profile.mean_of_kind("b") == (pytest.approx(5 / 3), 0.0, 1)


@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "dopri5"])
def test_every_call_of_a_drawing_is_noted(sampler: SamplerName, is_invariant: bool) -> None:
    sampling = SamplingConfig(
        sampler=sampler, steps=STEPS, guidance=2.0, guidance_end=0.6, batch_invariant=is_invariant
    )
    drawn = generate(build(config()), [0, 1, 2], sampling, seed=3)
    profile = CapacityProfile()
    profile.add(drawn.capacities, kinds=["x", "x", "y"], prompts=["0", "1", "2"])
    per_picture = [sum(place in call.places for call in drawn.capacities) for place in range(3)]
    assert sum(per_picture) == pytest.approx(3 * drawn.calls)
    # The same numbers as those by which the cost of a picture is counted.
    work = sum(float(call.capacity_LB.mean(dim=0).sum()) for call in drawn.capacities)
    assert work == pytest.approx(drawn.loads.work, rel=1e-5)
    assert min(profile.halves["unconditional"].times) >= 0.6 - 0.005
    assert min(profile.halves["conditional"].times) < 0.6
    if sampler == "euler":
        assert profile.halves["conditional"].times == drawn.loads.times


def test_a_picture_s_capacity_does_not_depend_on_its_batch() -> None:
    networks = build(config())
    sampling = SamplingConfig(steps=STEPS, guidance=2.0)
    found = []
    for chosen in (sampling, replace(sampling, batch_invariant=True)):
        profile = CapacityProfile()
        drawn = generate(networks, [0, 1, 2], chosen, seed=3)
        profile.add(drawn.capacities, kinds=["x"] * 3, prompts=["0", "1", "2"])
        found.append([picture.capacity for picture in profile.pictures])
    assert found[0] == pytest.approx(found[1], abs=0.05)  # a token at the threshold may fall to either side


def test_a_dense_model_has_no_profile() -> None:
    drawn = generate(build(config(moe={"num_experts": 0})), [0], SamplingConfig(steps=2), seed=0)
    profile = CapacityProfile()
    profile.add(drawn.capacities, kinds=["x"], prompts=["0"])
    assert drawn.capacities == [] and profile.halves == {} == profile.kinds and profile.pictures == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (0, "1 to 4 words"),
        (4, "1 to 4 words"),
        (5, "5 to 8 words"),
        (8, "5 to 8 words"),
        (9, "9 to 16 words"),
    ],
)
def test_captions_are_told_apart_by_their_length(words: int, kind: str) -> None:
    assert kind_of_caption(" ".join(["word"] * words)) == kind
