"""Guidance: its formula, its calls of the network, negative prompts, and each request's own."""

from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.sampling.batch import Request, generate_batch
from diffmoe_scale.sampling.guidance import guide
from tests.sampling.models import (
    NUM_CLASSES,
    STEPS,
    build,
    config,
    counted,
    generate,
    labels_of,
    text_networks,
)


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
