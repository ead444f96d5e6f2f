"""What an MoE layer and a training step are measured against, and the layers that a device can run."""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.bench.options import Device
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Routing, RoutingContext
from diffmoe_scale.parallel.device import keep_freed_memory


def set_up_device(device: Device, *, threads: int) -> torch.device:
    """The device to measure on, and the process made ready: on CPU freed memory is kept, as in training, for
    all contenders alike."""
    torch.set_num_threads(threads)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cpu":
        keep_freed_memory()
    return chosen


def layer_configs(base: MoEConfig, device: torch.device) -> dict[str, MoEConfig]:
    """`base` with the backend and precision of each layer that the device can run, by contender."""
    configs = {"loop": replace(base, backend="loop"), "grouped": replace(base, backend="grouped")}
    if device.type != "cuda":
        return configs
    from diffmoe_scale.moe.transformer_engine import load_transformer_engine

    try:
        te = load_transformer_engine()
    except ValueError as error:
        print(f"transformer_engine: not measured: {error}", file=sys.stderr)
        return configs
    configs["transformer_engine"] = engine = replace(base, backend="transformer_engine")
    if te.is_fp8_available():
        configs["fp8_delayed"] = replace(engine, precision="fp8_delayed")
        configs["fp8_current"] = replace(engine, precision="fp8_current")
    if te.is_fp8_block_scaling_available():
        configs["fp8_block"] = replace(engine, precision="fp8_block")
    return configs


def scatter_loop(layer: MoELayer, x_SD: Tensor, context: RoutingContext) -> tuple[Tensor, Routing]:
    """The same layer as research code writes it: for each expert pick its tokens, run it, scatter into a
    buffer of all tokens."""
    routing = layer.router(x_SD, context)
    p = dict(layer.expert_parameters())
    y_SD = torch.zeros_like(x_SD)
    for i in range(routing.mask_SE.shape[1]):
        taken_K = routing.mask_SE[:, i].nonzero().squeeze(1)
        hidden_KF = F.gelu(
            F.linear(x_SD[taken_K], p[f"experts.{i}.w_in"], p[f"experts.{i}.b_in"]), approximate="tanh"
        )
        out_KD = F.linear(hidden_KF, p[f"experts.{i}.w_out"], p[f"experts.{i}.b_out"])
        buffer_SD = torch.zeros_like(x_SD)
        buffer_SD[taken_K] = (out_KD * routing.gate_SE[taken_K, i].unsqueeze(1)).to(x_SD.dtype)
        y_SD = y_SD + buffer_SD
    return y_SD, routing
