"""Guidance: its formula, its calls of the network, negative prompts, and each request's own."""

from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Request, generate_batch
from diffmoe_scale.sampling.guidance import GuidedNetwork, guide
from tests.sampling.models import (
    NUM_CLASSES,
    SIZE,
    STEPS,
    build,
    config,
    counted,
    generate,
    labels_of,
    text_networks,
)

THRESHOLD = Selection("threshold")


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(
        guide(conditional, unconditional, 3.0), conditional + 2 * (conditional - unconditional)
    )


@pytest.mark.parametrize(
    "guidance, end, passes", [(1.0, 0.0, STEPS), (2.0, 0.0, 2 * STEPS), (2.0, 0.5, 2 * STEPS - 1)]
)
def test_guidance_costs_a_pass_a_step_while_it_is_on(guidance: float, end: float, passes: int) -> None:
    networks = build(config())
    seen = counted(networks)
    # Times 1, 0.75, 0.5, 0.25.
    generate(networks, [0, 1], SamplingConfig(steps=STEPS, guidance=guidance, guidance_end=end), seed=0)
    unconditional = [condition for condition in seen if set(labels_of(condition)) == {NUM_CLASSES}]
    assert len(seen) == passes and len(unconditional) == passes - STEPS


def test_each_picture_has_the_seed_number_and_negative_prompt_of_its_request(tmp_path: Path) -> None:
    networks, sampling = text_networks(tmp_path), SamplingConfig(steps=STEPS, guidance=2.0, fresh_noise=0.5)
    requests = [Request("red circle", 5, 2), Request("red circle", 6), Request("blue circle", 5, 2, "red")]
    together = generate_batch(networks, requests, sampling).images_BCHW
    for image_CHW, request in zip(together, requests, strict=True):
        alone_CHW = generate_batch(networks, [request], sampling).images_BCHW[0]
        torch.testing.assert_close(image_CHW, alone_CHW, rtol=1e-5, atol=1e-5)
    plain = generate(networks, ["blue circle"], sampling, seed=5, first_index=2).images_BCHW
    assert not torch.allclose(together[2], plain[0], atol=1e-3), "the negative prompt has no effect"


def test_guidance_leads_away_from_the_negative_prompt(tmp_path: Path) -> None:
    """Of one step from noise: x_0 is linear in what guidance makes of the two predictions."""
    networks = text_networks(tmp_path)

    def draw(prompt: str, guidance: float, negative_prompt: str = "") -> torch.Tensor:
        sampling = SamplingConfig(steps=1, guidance=guidance)
        return generate(networks, [prompt], sampling, seed=0, negative_prompt=negative_prompt).images_BCHW

    wanted, unwanted = draw("red circle", 1.0), draw("blue square", 1.0)
    expected = (unwanted + 2.0 * (wanted - unwanted)).clamp(-1, 1)
    inside = (wanted.abs() < 1) & (unwanted.abs() < 1)  # what was not clipped
    guided = draw("red circle", 2.0, "blue square")
    assert inside.any()
    torch.testing.assert_close(guided[inside], expected[inside], rtol=1e-4, atol=1e-4)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction() -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    plain = guide(conditional, unconditional, 5.0)
    whole = guide(conditional, unconditional, 5.0, rescale=1.0)
    half = guide(conditional, unconditional, 5.0, rescale=0.5)
    for row in range(2):
        assert float(whole[row].std()) == pytest.approx(float(conditional[row].std()), rel=1e-5)
        # arXiv 2305.08891 eq. 15 and 16, sample by sample.
        rescaled = plain[row] * conditional[row].std() / plain[row].std()
        torch.testing.assert_close(half[row], 0.5 * rescaled + 0.5 * plain[row])
    assert torch.equal(guide(conditional, unconditional, 5.0, rescale=0.0), plain)
    zeros = torch.zeros(1, 3, 4, 4)
    assert torch.equal(guide(zeros, zeros, 5.0, rescale=1.0), zeros)


@pytest.mark.parametrize(
    ("start", "end", "guided"),
    [(1.0, 0.0, [1.0, 0.75, 0.5, 0.25]), (0.75, 0.5, [0.75, 0.5]), (0.9, 0.8, []), (0.5, 0.5, [0.5])],
)
def test_guidance_is_on_in_its_interval_of_times(start: float, end: float, guided: list[float]) -> None:
    networks = build(config())
    times: list[tuple[float, int]] = []
    networks.denoiser.register_forward_pre_hook(
        lambda denoiser, arguments: times.append((float(arguments[1][0]), labels_of(arguments[2])[0]))
    )
    sampling = SamplingConfig(steps=STEPS, guidance=2.0, guidance_start=start, guidance_end=end)
    drawn = generate(networks, [0], sampling, seed=0)
    assert [time / 1000 for time, label in times if label == NUM_CLASSES] == guided
    assert drawn.calls == STEPS + len(guided)


@pytest.mark.parametrize(("start", "end"), [(0.8, 0.6), (0.9, 0.7), (0.7, 0.2)])
def test_ends_of_the_interval_are_inside_whatever_fp32_makes_of_them(start: float, end: float) -> None:
    sampling = SamplingConfig(steps=10, guidance=2.0, guidance_start=start, guidance_end=end)
    assert generate(build(config()), [0], sampling, seed=0).calls == 10 + round((start - end) * 10) + 1


def test_a_learned_variance_is_not_guided() -> None:
    networks = build(config(diffusion=DiffusionConfig(kind="ddpm")))
    x_BCHW, t_B = torch.randn(2, 3, SIZE, SIZE), torch.full((2,), 0.5)
    conditions = [Condition(torch.full((2,), label)) for label in (0, NUM_CLASSES)]
    predict = GuidedNetwork(networks, SamplingConfig(guidance=3.0), *conditions, selection=THRESHOLD)
    time_B = networks.objective.embedding_time(t_B)
    with torch.no_grad():
        guided = predict(x_BCHW, t_B)
        alone, baseline = (
            networks.denoiser(x_BCHW, time_B, condition, Selection("threshold")).value_BCHW
            for condition in conditions
        )
    assert torch.equal(guided[:, 3:], alone[:, 3:])
    assert torch.equal(guided[:, :3], guide(alone, baseline, 3.0)[:, :3])


def test_samples_at_times_of_their_own_are_guided_and_noted_each_by_its_time() -> None:
    networks = build(config())
    sampling = SamplingConfig(sampler="dopri5", guidance=3.0, guidance_end=0.5)
    conditions = [Condition(torch.full((2,), label)) for label in (0, NUM_CLASSES)]
    x_BCHW, t_B = torch.randn(2, 3, SIZE, SIZE), torch.tensor([0.8, 0.301])
    with torch.no_grad():
        predict = GuidedNetwork(networks, sampling, *conditions, selection=THRESHOLD)
        together = predict(x_BCHW, t_B)
        for row in range(2):
            singles = [Condition(torch.full((1,), label)) for label in (0, NUM_CLASSES)]
            alone = GuidedNetwork(networks, sampling, *singles, selection=THRESHOLD)
            value = alone(x_BCHW[row : row + 1], t_B[row : row + 1])
            torch.testing.assert_close(together[row : row + 1], value, rtol=1e-5, atol=1e-5)
            assert alone.calls == (2, 1)[row]
            assert alone.loads.times == [(0.8, 0.3)[row]]
            # The guided sample's own two calls; the other's second call is noted too, as it was made.
            if row == 0:
                torch.testing.assert_close(predict.loads.load_TLE[0], alone.loads.load_TLE[0])
    assert predict.calls == 2 and predict.loads.times == [0.8, 0.3]
