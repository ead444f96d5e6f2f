"""Forward and backward of one micro-batch of a config, as it is, compiled, and as a CUDA graph: time, MFU,
and what forward keeps in memory beside the plan's.

One process, random weights, noise for latents.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diffmoe_scale.bench.timing import quartiles, ratios, time_interleaved
from diffmoe_scale.config.schema import Config
from diffmoe_scale.model.compilation import compile_blocks
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.moe.layer import single_rank_groups
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS
from diffmoe_scale.plan.build import build_denoiser, real_inputs, tokens_per_picture
from diffmoe_scale.plan.flops import count_flops
from diffmoe_scale.plan.trace import trace_step
from diffmoe_scale.telemetry.hardware import GIB, NumberFormat, find_gpu, mfu
from diffmoe_scale.train.graph import GraphedForward, record_on_gpu


class MicroStep:
    """A network, its inputs, and the pass over them."""

    def __init__(self, config: Config, device: torch.device, *, is_compiled: bool = False) -> None:
        self.config, self.device = config, device
        self.network = build_network(config, device)
        if is_compiled:
            compile_blocks(self.network.transformer)
        with device:
            self.x_BCHW, self.condition = real_inputs(config, config.run.micro_batch)
        self.time_B = torch.linspace(0.01, 0.99, len(self.x_BCHW), device=device)

    def loss(self) -> Tensor:
        prediction = self.network(self.x_BCHW, self.time_B, self.condition, Selection("train", step=1))
        loss: Tensor = prediction.value_BCHW.square().mean()
        for routing in prediction.routings:
            loss = loss + sum(routing.aux_losses.values())
        return loss

    def __call__(self) -> Tensor:
        """Forward and backward; answers the loss."""
        for parameter in self.network.parameters():
            parameter.grad = None
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares no type
        return loss.detach()

    def graph(self) -> Callable[[], Tensor]:
        """The same with the network's passes as CUDA graphs, as `run.cuda_graph` has them."""
        forward = GraphedForward(self.network, record=record_on_gpu)
        self.network.forward = forward  # type: ignore[method-assign]  # on purpose
        return self

    def kept_bytes(self) -> int:
        """What a forward pass keeps for the backward, by torch's allocator on a GPU."""
        self.network.zero_grad()
        before = torch.cuda.memory_allocated(self.device)
        loss = self.loss()
        kept = torch.cuda.memory_allocated(self.device) - before
        del loss
        return kept


def build_network(config: Config, device: torch.device) -> Denoiser:
    """With random weights, which are drawn where they will be."""
    network = build_denoiser(config, single_rank_groups())
    network.to(NUMBER_FORMATS[config.model.precision]).to_empty(device=device)
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    for buffer in network.buffers():
        buffer.zero_()
    return network


def bench_micro_step(
    config: Config, device: torch.device, *, rounds: int, variants: tuple[str, ...]
) -> list[dict[str, object]]:
    """A row for each of `variants`: eager, compiled, graph."""
    calls: dict[str, Callable[[], Tensor]] = {}
    eager = MicroStep(config, device)
    for variant in variants:
        match variant:
            case "eager":
                calls[variant] = eager
            case "compiled":
                calls[variant] = MicroStep(config, device, is_compiled=True)
            case "graph":
                calls[variant] = MicroStep(config, device).graph()
    losses = {name: float(call()) for name, call in calls.items()}
    seconds = time_interleaved(calls, rounds=rounds, device=device)
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    count = config.run.micro_batch
    flops = count_flops(config, num_samples=count).model * count
    number_format: NumberFormat = "bf16" if config.model.precision == "bf16" else "fp32"
    rows: list[dict[str, object]] = []
    for name, times in seconds.items():
        ms = quartiles([1e3 * second for second in times])
        row: dict[str, object] = {
            "variant": name,
            "ms": ms,
            "tokens_per_s": 1e3 * count * tokens_per_picture(config) / ms["median"],
            f"over_{variants[0]}": ratios(times, seconds[variants[0]]),
            "loss": losses[name],
        }
        if gpu is not None:
            row["mfu"] = mfu(flops, ms["median"] / 1e3, gpu=gpu, number_format=number_format)
        rows.append(row)
    return rows


def compare_memory(config: Config, device: torch.device) -> dict[str, float]:
    """GiB that forward keeps, planned, and measured where there is a GPU."""
    trace = trace_step(config, num_samples=config.run.micro_batch)
    planned = sum(part.end for part in trace.whole(trace.forward))
    result = {"planned_gib": planned / GIB}
    if device.type == "cuda":
        result["measured_gib"] = MicroStep(config, device).kept_bytes() / GIB
    return result


def write_trace(config: Config, device: torch.device, path: Path) -> None:
    """One pass as torch's profiler sees it, for chrome://tracing or Perfetto."""
    step = MicroStep(config, device)
    step()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(path))
