"""Whether what a GPU run stands on works at all: each check by itself, its error kept."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.layer import MoELayer, single_rank_groups
from diffmoe_scale.moe.routing import RoutingContext, Selection

Backend = Literal["loop", "grouped", "transformer_engine"]
Precision = Literal["model", "fp8_delayed", "fp8_current", "fp8_block"]
RECIPES: tuple[Precision, ...] = ("model", "fp8_delayed", "fp8_current", "fp8_block")
PACKAGES = ("megatron.core", "deepspeed", "pydantic", "diffmoe_scale.pretrain", "diffmoe_scale.sample")


def smoke(device: torch.device) -> dict[str, str]:
    """What each check said: `ok`, with what it found, or its error."""
    checks: dict[str, Callable[[], str]] = {
        "imports": check_imports,
        "group of one rank": partial(check_group, device),
        "grouped product in bf16": partial(check_grouped, device),
        "layer, forward and backward": partial(check_layer, device, "grouped", "model"),
    }
    if device.type == "cuda":
        for recipe in RECIPES:
            check = partial(check_layer, device, "transformer_engine", recipe)
            checks[f"Transformer Engine, {recipe}"] = check
    return {name: outcome_of(check) for name, check in checks.items()}


def outcome_of(check: Callable[[], str]) -> str:
    try:
        return f"ok {check()}".strip()
    except Exception as error:  # whatever it is, the other checks are to be seen
        return f"{type(error).__name__}: {error}"


def check_imports() -> str:
    for name in PACKAGES:
        importlib.import_module(name)
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}"


def check_group(device: torch.device) -> str:
    """A sum over a group of one rank, by NCCL on a GPU."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
        try:
            ones = torch.ones(4, device=device)
            dist.all_reduce(ones)
            dist.all_to_all_single(torch.empty_like(ones), ones)
        finally:
            dist.destroy_process_group()
    return backend


def check_grouped(device: torch.device) -> str:
    """Uneven and empty groups against a loop."""
    rows, generator = [5, 0, 27, 32], torch.Generator().manual_seed(0)
    x, w = (
        torch.randn(sum(rows), 64, generator=generator),
        torch.randn(len(rows), 64, 32, generator=generator),
    )
    x, w = x.to(device, torch.bfloat16), w.to(device, torch.bfloat16)
    ends = torch.tensor(rows, device=device).cumsum(0, dtype=torch.int32)
    expected = torch.cat([part.float() @ w[i].float() for i, part in enumerate(x.split(rows))])
    error = float((F.grouped_mm(x, w, offs=ends).float() - expected).norm() / expected.norm())
    if not error < 0.01:
        raise ValueError(f"relative error {error:.2g}; expected below 0.01")
    return f"relative error {error:.1e}"


def check_layer(device: torch.device, backend: Backend, precision: Precision) -> str:
    """Against the plain loop with the same weights."""
    answers: dict[str, tuple[Tensor, Tensor]] = {}
    contenders: list[tuple[Backend, Precision]] = [("loop", "model"), (backend, precision)]
    for name, recipe in contenders:
        config = replace(MoEConfig(num_experts=4), backend=name, precision=recipe)
        layer = MoELayer(config, width=64, layer_index=0, groups=single_rank_groups())
        layer.initialize(0)
        layer.to(device, torch.bfloat16)
        x_SD = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
        x_SD.requires_grad_()
        context = RoutingContext(1, x_SD.detach(), x_SD.new_zeros(1, 64), Selection("train"))
        y_SD, routing = layer(x_SD, context)
        torch.autograd.backward([y_SD, *routing.aux_losses.values()], [torch.ones_like(y_SD), None])
        assert x_SD.grad is not None
        answers[name] = (y_SD.detach().float(), x_SD.grad.float())
    errors = [
        float((got - expected).norm() / expected.norm())
        for got, expected in zip(answers[backend], answers["loop"], strict=True)
    ]
    if not max(errors) < (0.02 if precision == "model" else 0.15):
        raise ValueError(f"relative errors of output and gradient {errors}")
    return f"relative errors {errors[0]:.1e} and {errors[1]:.1e}"
