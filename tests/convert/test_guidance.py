"""Guidance of converted weights is that of the samplers that their scores were published with."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any  # networks that a sampler calls

import pytest
import torch

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.convert.foreign import import_foreign, open_foreign
from diffmoe_scale.convert.plain import PlainDiT
from diffmoe_scale.diffusion.objective import build_objective
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.euler import euler
from diffmoe_scale.sampling.guidance import GuidedNetwork
from diffmoe_scale.sampling.schedule import sampling_times
from tests.convert.reference import CHANNELS, CLASSES, GRID, PATCH, drawn_state
from tests.convert.test_reference import denoiser_of
from tests.model.models import assert_near

SCALE, STEPS = 4.0, 4
LABELS_B = torch.tensor([1, 7])
# Time is a rotation of theirs, rounded anew: 2e-5 of one step, which a network of random weights enlarges.
TOLERANCE = 1e-3


def forward_with_cfg(plain: PlainDiT, x: torch.Tensor, t: float, y: torch.Tensor) -> torch.Tensor:
    """As in facebookresearch/DiT's models.py: x and y are the conditional half, then the other."""
    half = x[: len(x) // 2]
    combined = torch.cat([half, half], dim=0)
    model_out = plain(combined, torch.full((len(x),), t), y)
    eps, rest = model_out[:, :3], model_out[:, 3:]
    cond_eps, uncond_eps = torch.split(eps, len(eps) // 2, dim=0)
    half_eps = uncond_eps + SCALE * (cond_eps - uncond_eps)
    eps = torch.cat([half_eps, half_eps], dim=0)
    return torch.cat([eps, rest], dim=1)


def open_both(path: Path, kind: str) -> tuple[StoredWeights, PlainDiT]:
    torch.save(drawn_state(), path)
    model = open_foreign(path, ["model.heads=4", f"diffusion.kind={kind}"])
    plain = PlainDiT(model.file.states["ema"], model.shapes, heads=4, capacity=1.0, top_k=1)
    return import_foreign(model), plain


def guided(stored: StoredWeights, **sampling: Any) -> GuidedNetwork:
    config = stored.config
    denoiser = denoiser_of(stored, "ema").eval()
    networks: Any = SimpleNamespace(denoiser=denoiser, objective=build_objective(config.diffusion))
    conditions = [Condition(labels_B) for labels_B in (LABELS_B, torch.full_like(LABELS_B, CLASSES))]
    chosen = replace(config.sampling, guidance=SCALE, **sampling)
    return GuidedNetwork(networks, chosen, *conditions, selection=Selection("static"))


def noise(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, CHANNELS, GRID * PATCH, GRID * PATCH, generator=generator)


BOTH_B = torch.cat([LABELS_B, torch.full_like(LABELS_B, CLASSES)])


@torch.no_grad()
def test_samples_of_a_converted_sit_are_those_of_its_sampler(tmp_path: Path) -> None:
    stored, plain = open_both(tmp_path / "a.pt", "flow")
    x = torch.cat([noise(), noise()])
    for step in range(STEPS):  # their time is 0 for noise
        x = x + forward_with_cfg(plain, x, step / STEPS, BOTH_B)[:, :CHANNELS] / STEPS
    network, times = guided(stored), sampling_times(STEPS, end=0.0)
    drawn = euler(network, network.networks.objective, noise(), times)
    assert_near(drawn, x[: len(LABELS_B)], tolerance=TOLERANCE)
    network = guided(stored, guidance_channels=0)
    other = euler(network, network.networks.objective, noise(), times)
    assert (other - drawn).abs().max() > 0.1 * drawn.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("t", [0.2, 0.9])
def test_the_guided_output_of_a_converted_dit_is_its_own(tmp_path: Path, t: float) -> None:
    """Noise of three channels guided; that of the fourth, and sigma, of the conditional call."""
    stored, plain = open_both(tmp_path / "a.pt", "ddpm")
    network, t_B = guided(stored), torch.full((2,), t)
    time = float(network.networks.objective.embedding_time(t_B)[0])
    expected = forward_with_cfg(plain, torch.cat([noise(), noise()]), time, BOTH_B)
    assert_near(network(noise(), t_B), expected[: len(LABELS_B)])
