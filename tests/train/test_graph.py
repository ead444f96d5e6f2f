"""CUDA graphs of the training pass, by a recorder that replays on a CPU as torch's does on a GPU: into the
same memory every time."""

from collections.abc import Callable
from typing import Any  # autograd's context

import pytest
import torch
from torch import Tensor, nn

from diffmoe_scale.config.load import load_config
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.train.graph import GraphedForward, refuse_graph
from tests.model.models import CHANNELS, SIZE, disturb, make_transformer


def record(module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """Inputs, answers and gradients have memory of their own, which each replay writes to."""
    parameters = tuple(module.parameters())
    with torch.enable_grad():
        answers = module(*samples)
    kept = [answer.detach().clone() for answer in answers]
    grads = [torch.empty_like(parameter) for parameter in parameters]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
            for place, given in zip(samples, inputs, strict=False):
                place.copy_(given)
            with torch.enable_grad():
                ctx.answers = module(*samples)
            for place, answer in zip(kept, ctx.answers, strict=True):
                place.copy_(answer.detach())
            ctx.mark_non_differentiable(
                *(place for place, a in zip(kept, ctx.answers, strict=True) if not a.requires_grad)
            )
            return tuple(place.detach() for place in kept)

        @staticmethod
        def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
            pairs = [(a, g) for a, g in zip(ctx.answers, given, strict=True) if a.requires_grad]
            found = torch.autograd.grad(
                [a for a, _ in pairs], parameters, [g for _, g in pairs], allow_unused=True
            )
            for place, grad in zip(grads, found, strict=True):
                place.copy_(torch.zeros(()) if grad is None else grad)
            return *(None for _ in samples), *(place.detach() for place in grads)

    def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
        answers: tuple[Tensor, ...] = Replay.apply(*tensors, *parameters)
        return answers

    return replay


def make_denoiser() -> Denoiser:
    transformer = make_transformer("class")
    disturb(transformer)
    return Denoiser(transformer, None)


def steps(denoiser: Denoiser, sizes: list[int]) -> list[dict[str, Any]]:
    """Losses, routings and gradients of passes over other tensors; read after the last of them."""
    results = []
    for number, size in enumerate(sizes, start=1):
        generator = torch.Generator().manual_seed(number)
        x_BCHW = torch.randn(3, CHANNELS, size, size, generator=generator)
        condition = Condition(labels_B=torch.randint(0, 3, (3,), generator=generator))
        prediction = denoiser(
            x_BCHW, torch.rand(3, generator=generator), condition, Selection("train", step=number)
        )
        loss = prediction.value_BCHW.square().mean()
        loss = loss + sum(routing.aux_losses["predictor"] for routing in prediction.routings)
        denoiser.zero_grad()
        loss.backward()
        results.append(
            {"loss": loss.detach()}
            | {f"mask{i}": routing.mask_SE for i, routing in enumerate(prediction.routings)}
            | {f"statistic{i}": routing.statistic_X for i, routing in enumerate(prediction.routings)}
            | {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
        )
    return results


def test_replayed_passes_have_the_losses_routings_and_gradients_of_computed_ones() -> None:
    plain, graphed = make_denoiser(), make_denoiser()
    forward = GraphedForward(graphed, record=record)
    graphed.forward = forward  # type: ignore[method-assign]
    sizes = [SIZE, SIZE, 2 * SIZE, SIZE]
    for expected, got in zip(steps(plain, sizes), steps(graphed, sizes), strict=True):
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert torch.equal(got[name], value), name
    assert len(forward.graphs) == 2
    assert list(plain.state_dict()) == list(graphed.state_dict())


def test_what_is_observed_and_what_is_sampled_is_computed() -> None:
    denoiser = make_denoiser()
    forward = GraphedForward(denoiser, record=record)
    arguments = torch.randn(1, CHANNELS, SIZE, SIZE), torch.rand(1), Condition(labels_B=torch.tensor([0]))
    assert forward(*arguments, Selection("train", step=1, is_observed=True)).routings[0].scores_SE is not None
    with torch.no_grad():
        forward(*arguments, Selection("static"))
    assert not forward.graphs


@pytest.mark.parametrize(
    ("setting", "device"),
    [
        ("moe.pool=data_parallel", "cuda"),
        ("moe.router=token_choice", "cuda"),
        ("moe.predictor_tokens=0.25", "cuda"),
        ("model.activation_checkpointing=blocks", "cuda"),
        ("model.precision=fp32", "cuda"),
        ("no CUDA device", "cpu"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused_by_name(setting: str, device: str) -> None:
    settings = ["model.precision=bf16", "sampling.selection=static", *([setting] if "=" in setting else [])]
    with pytest.raises(ValueError, match=setting.split("=")[0]):
        refuse_graph(load_config(None, settings), torch.device(device))


def test_a_usual_run_on_a_gpu_may_have_a_graph() -> None:
    refuse_graph(load_config(None, ["model.precision=bf16"]), torch.device("cuda"))
