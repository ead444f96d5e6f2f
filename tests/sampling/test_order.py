"""Every sampler on data of which the exact flow is known: it converges, as fast as its order says, and ends
in time."""

import itertools
import math
from typing import Literal

import pytest
import torch

from diffmoe_scale.config.diffusion import DiffusionConfig
from diffmoe_scale.config.sampling import SAMPLERS, SamplerName, SamplingConfig
from diffmoe_scale.sampling.build import build_sampler, times_for
from tests.model.models import EXPERTS
from tests.sampling.gaussian import Gaussian, noise, rms
from tests.sampling.models import build, config, generate

ORDERS: dict[SamplerName, int] = {
    "euler": 1,
    "heun": 2,
    "adams_bashforth": 2,
    "dpm_solver": 2,
    "ddim": 1,
}
CALLS = {"heun": lambda steps: 2 * steps - 1}


def draw(network: Gaussian, x_1: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    def fresh_noise(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(x_1.shape, generator=generator)

    sampler = build_sampler(sampling, fresh_noise=fresh_noise, is_any=bool)
    return sampler(network, network.objective, x_1, times_for(sampling, network.objective, num_tokens=64))


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS["flow"] if name in ORDERS])
def test_the_error_falls_with_the_order_of_the_sampler(
    name: SamplerName, prediction: Literal["velocity", "sample"]
) -> None:
    errors = []
    # log(signal / level) has no smallest value: its equal parts are fine late.
    for steps in (160, 320, 640) if name == "dpm_solver" else (20, 40, 80):
        network = Gaussian(DiffusionConfig(prediction=prediction, min_time=1e-3))
        x_1 = noise()
        x_0 = draw(network, x_1, SamplingConfig(sampler=name, steps=steps))
        errors.append(rms(x_0 - network.exact(x_1, end=0.0)))
        assert len(network.times) == CALLS.get(name, int)(steps)
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(abs(slope - ORDERS[name]) < 0.3 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("name", [name for name in SAMPLERS["ddpm"] if name in ORDERS and name != "euler"])
def test_the_same_for_ddpm(name: SamplerName) -> None:
    errors = []
    for steps in (80, 160, 320):
        network, x_1 = Gaussian(DiffusionConfig(kind="ddpm")), noise()
        x_0 = draw(network, x_1, SamplingConfig(sampler=name, steps=steps))
        errors.append(rms(x_0 - network.exact(x_1, end=1 / 1000)))
        assert len(network.times) == steps
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(abs(slope - ORDERS[name]) < 0.35 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SAMPLERS.items() for name in names]
)
@pytest.mark.parametrize("steps", [10, 500])
def test_no_sampler_calls_the_network_below_the_end_and_all_begin_at_noise(
    kind: Literal["flow", "ddpm"], name: SamplerName, steps: int
) -> None:
    prediction: Literal["velocity", "sample"] = "sample" if kind == "flow" else "velocity"
    network = Gaussian(DiffusionConfig(kind=kind, prediction=prediction, min_time=0.05))
    draw(network, noise(2, size=4), SamplingConfig(sampler=name, steps=steps))
    end = network.objective.end_time
    assert network.times[0] == [1.0, 1.0]
    assert min(min(times) for times in network.times) >= end - 1e-7
    assert end == (0.05 if kind == "flow" else 1 / 1000)


@pytest.mark.parametrize("name", [name for name in SAMPLERS["flow"] if name != "euler"])
def test_fine_samplers_leave_no_noise_where_the_network_predicts_data(name: SamplerName) -> None:
    """The velocity below min_time is another one: a sampler that followed it would keep part of the noise."""
    network = Gaussian(DiffusionConfig(prediction="sample", min_time=0.05))
    x_1 = noise()
    x_0 = draw(network, x_1, SamplingConfig(sampler=name, steps=320, tolerance=1e-5))
    assert rms(x_0 - network.exact(x_1, end=0.05)) < 1e-3


def test_heun_calls_each_inner_time_twice_and_the_others_once() -> None:
    network = Gaussian(DiffusionConfig())
    draw(network, noise(1, size=4), SamplingConfig(sampler="heun", steps=4))
    assert [times[0] for times in network.times] == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("num_experts", "allowed"), [(0, 1e-3), (EXPERTS, 0.01)])
def test_heun_and_dopri5_agree_on_a_network(num_experts: int, allowed: float, guidance: float) -> None:
    """Where tokens change experts the velocity jumps: no solver is exact there."""
    # A random network over the fast sines of time_scale 1000 would turn with every step.
    diffusion = DiffusionConfig(time_scale=10.0)
    networks = build(config(moe={"num_experts": num_experts}, diffusion=diffusion))
    fine = SamplingConfig(sampler="heun", steps=40, guidance=guidance)
    adaptive = SamplingConfig(sampler="dopri5", tolerance=1e-4, guidance=guidance)
    pictures = [generate(networks, [0, 1, 2], sampling, seed=3) for sampling in (fine, adaptive)]
    assert pictures[0].calls == 79 * guidance
    assert rms(pictures[0].images_BCHW - pictures[1].images_BCHW) < allowed


def test_pictures_with_calls_of_their_own_are_bitwise_the_same_in_any_batch() -> None:
    networks = build(config())
    names: tuple[SamplerName, ...] = ("euler", "dopri5")
    for name in names:
        sampling = SamplingConfig(sampler=name, steps=4, guidance=2.0, batch_invariant=True)
        together = generate(networks, [0, 1, 2], sampling, seed=3)
        for number in range(3):
            alone = generate(networks, [number], sampling, seed=3, first_index=number)
            assert torch.equal(alone.images_BCHW[0], together.images_BCHW[number])
        first = generate(networks, [0, 1], sampling, seed=3)
        assert torch.equal(first.images_BCHW, together.images_BCHW[:2])
