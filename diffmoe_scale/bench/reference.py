"""A layer and a training step of this stack against the modules of a DiffMoE checkout, with equal weights,
and against the expert GEMMs alone.

The checkout (github.com/KwaiVGI/DiffMoE) is the user's; nothing of it is kept here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffmoe_scale.bench.contenders import set_up_device
from diffmoe_scale.bench.layer import ExpertGemms, context_of, set_thresholds
from diffmoe_scale.bench.options import ReferenceOptions, StepOptions
from diffmoe_scale.bench.reference_modules import (
    ReferenceModules,
    build_reference_layer,
    build_reference_model,
    copy_layer,
    copy_model,
)
from diffmoe_scale.bench.step import CHANNELS, CLASSES, PATCH, build_model, predict
from diffmoe_scale.bench.step import run_phase as run_step
from diffmoe_scale.bench.timing import quartiles, ratios, time_interleaved
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer, single_rank_groups
from diffmoe_scale.moe.routing import Selection

PHASES = ("forward+backward", "inference")
TOLERANCE = 1e-3
"""Relative difference of the answers: round-off, and a token or two at the border of the top K."""


def bench_reference(options: ReferenceOptions) -> tuple[list[dict[str, object]], torch.device]:
    """A row for every number of experts, part (layer, step), phase and contender, and the device.

    Raises: ValueError if the checkout is not the reference, RunError if its answers are not ours.
    """
    reference = ReferenceModules.load(options.reference)
    device = set_up_device(options.device, threads=options.threads)
    table: list[dict[str, object]] = []
    with one_rank():
        for num_experts in options.experts:
            table += bench_layer(reference, options, num_experts, device)
            table += bench_step(reference, options, num_experts, device)
    return table, device


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone: the reference averages its thresholds over one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def bench_layer(
    reference: ReferenceModules, options: ReferenceOptions, num_experts: int, device: torch.device
) -> list[dict[str, object]]:
    """Rows of one layer in training and at inference, and of its GEMMs."""
    ours = MoELayer(
        MoEConfig(num_experts=num_experts), width=options.width, layer_index=0, groups=single_rank_groups()
    )
    ours.initialize(0)
    ours.to(device)
    theirs = build_reference_layer(reference, width=options.width, num_experts=num_experts).to(device)
    generator = torch.Generator().manual_seed(0)
    x_SD, grad_SD = (
        torch.randn(options.tokens, options.width, generator=generator).to(device) for _ in range(2)
    )
    gemms = ExpertGemms(ours, x_SD, num_rows=options.tokens)
    even = [options.tokens // num_experts] * num_experts
    copy_layer(ours, theirs)
    table: list[dict[str, object]] = []
    for phase in PHASES:
        rows = even
        is_training = phase != "inference"
        theirs.train(is_training)
        if not is_training:
            rows = set_thresholds(ours, x_SD)
            copy_layer(ours, theirs)
        forward, forward_theirs = partial(_ours, ours, phase=phase), partial(_theirs, theirs)
        if is_training:
            # At inference the reference takes as many tokens, but those of the highest gates.
            with torch.no_grad():
                _check_equal(f"layer of {num_experts} experts", forward(x_SD)[0], forward_theirs(x_SD)[0])
        run = partial(_run_layer, x_SD=x_SD, grad_SD=grad_SD, is_training=is_training)
        calls: dict[str, Callable[[], None]] = {
            "ours": partial(run, forward, ours),
            "reference": partial(run, forward_theirs, theirs),
        }
        calls["expert_gemms"] = partial(gemms, rows, has_backward=is_training)
        table += _rows(calls, options, device, num_experts=num_experts, part="layer", phase=phase)
    return table


def _ours(layer: MoELayer, x_SD: Tensor, *, phase: str) -> tuple[Tensor, Tensor]:
    """The answer [S, D], and the predictor's loss (0 at inference)."""
    y_SD, routing = layer(x_SD, context_of(x_SD, phase))
    return y_SD, sum(routing.aux_losses.values(), start=y_SD.new_zeros(()))


def _theirs(layer: nn.Module, x_SD: Tensor) -> tuple[Tensor, Tensor]:
    y_BND, mask_BNE, prediction_BNE = layer(x_SD.unsqueeze(0))
    return y_BND[0], _predictor_loss(mask_BNE, prediction_BNE, y_BND)


def _predictor_loss(mask_BNE: Tensor | None, prediction_BNE: Tensor | None, like: Tensor) -> Tensor:
    if mask_BNE is None or prediction_BNE is None:
        return like.new_zeros(())
    return nn.functional.binary_cross_entropy_with_logits(prediction_BNE, mask_BNE)


def _run_layer(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    module: nn.Module,
    *,
    x_SD: Tensor,
    grad_SD: Tensor,
    is_training: bool,
) -> None:
    """One call; its gradients are gone afterwards."""
    x_SD = x_SD.detach().requires_grad_(is_training)
    with torch.set_grad_enabled(is_training):
        y_SD, loss = forward(x_SD)
    if is_training:
        torch.autograd.backward([y_SD, loss], [grad_SD, None])
        module.zero_grad()


def bench_step(
    reference: ReferenceModules, options: ReferenceOptions, num_experts: int, device: torch.device
) -> list[dict[str, object]]:
    """Rows of a training step of a class-conditional model: forward, backward and AdamW."""
    sizes = StepOptions(
        width=options.width, depth=options.depth, experts=num_experts, latent_size=options.latent_size
    )
    ours = build_model(sizes, device, MoEConfig(num_experts=num_experts, every=2))
    with torch.no_grad():
        for parameter in ours.parameters():
            if not parameter.any():
                # adaLN-Zero answers zero at the start: nothing could be compared.
                parameter.normal_(std=0.02, generator=torch.Generator(device).manual_seed(parameter.numel()))
    theirs = build_reference_model(
        reference, sizes, channels=CHANNELS, patch=PATCH, classes=CLASSES, num_experts=num_experts
    ).to(device)
    copy_model(ours, theirs)
    batch = max(1, options.tokens // (options.latent_size // PATCH) ** 2)
    shape = batch, CHANNELS, options.latent_size, options.latent_size
    x_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        mine = predict(ours, x_BCHW, Selection("train")).value_BCHW
        _check_equal(f"model of {num_experts} experts", mine, _predict_theirs(theirs, x_BCHW)[0])
    # No rate: the weights stay, so that every call routes alike.
    mine_optimizer, optimizer = (
        torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        for model in (ours, theirs)
    )
    calls: dict[str, Callable[[], None]] = {
        "ours": partial(_step_ours, ours, mine_optimizer, x_BCHW),
        "reference": partial(_step_theirs, theirs, optimizer, x_BCHW),
    }
    return _rows(calls, options, device, num_experts=num_experts, part="step", phase="step")


def _step_ours(model: DiffusionTransformer, optimizer: torch.optim.Optimizer, x_BCHW: Tensor) -> None:
    run_step(model, optimizer, x_BCHW, "step")


def _predict_theirs(model: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The answer, and the sum of the layers' predictor losses."""
    batch, device = len(x_BCHW), x_BCHW.device
    times_B = torch.linspace(0, 1000, batch, device=device)
    labels_B = torch.arange(batch, device=device) % CLASSES
    y_BCHW, _, _, masks, predictions, _ = model(x_BCHW, times_B, labels_B)
    losses = [_predictor_loss(*pair, y_BCHW) for pair in zip(masks, predictions, strict=True)]
    return y_BCHW, torch.stack(losses).sum()


def _step_theirs(model: nn.Module, optimizer: torch.optim.Optimizer, x_BCHW: Tensor) -> None:
    y_BCHW, predictor_loss = _predict_theirs(model, x_BCHW)
    ((y_BCHW - x_BCHW).square().mean() + predictor_loss).backward()
    optimizer.step()
    optimizer.zero_grad()


def _check_equal(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Raises: RunError if the answers differ by more than round-off."""
    difference = float((ours - theirs).norm() / ours.norm())
    if not difference <= TOLERANCE:
        raise RunError(
            f"{what}: the answers of this stack and of the reference differ by {difference:.2g} of their "
            f"size with equal weights; expected at most {TOLERANCE}. Is the checkout changed?"
        )


def _rows(
    calls: dict[str, Callable[[], None]],
    options: ReferenceOptions,
    device: torch.device,
    **facts: object,
) -> list[dict[str, object]]:
    seconds = time_interleaved(calls, rounds=options.rounds, device=device)
    return [
        facts
        | {
            "contender": name,
            "ms": quartiles([1e3 * second for second in times]),
            "over_ours": ratios(times, seconds["ours"]),
        }
        for name, times in seconds.items()
    ]
