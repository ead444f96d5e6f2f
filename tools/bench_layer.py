"""The MoE layer against the dense network of equal activated parameters, research code's loop, and its expert
GEMMs alone.

    python tools/bench_layer.py --threads 2 --shape 384x16x8192 --output layer.json
    python tools/bench_layer.py --ranks 4 --shape 384x16x2048 --output pool.json

On CPU freed memory is kept, as in training (parallel.context.keep_freed_memory), for all contenders alike.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from diffmoe_scale.bench.timing import (
    MIB,
    format_table,
    measure_memory,
    quartiles,
    ratios,
    time_interleaved,
    write_result,
)
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.layer import MoELayer, single_rank_groups
from diffmoe_scale.moe.routing import Routing, RoutingContext, Selection
from diffmoe_scale.moe.selection import gather_pool, kth_largest, select_top
from diffmoe_scale.nn.feed_forward import FeedForward
from diffmoe_scale.parallel.context import ParallelContext, initialize, keep_freed_memory

SAMPLE_TOKENS = 256
PHASES = ("forward", "forward+backward", "inference")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU_BACKENDS = ("loop", "grouped")
FP8_PRECISIONS = ("fp8_delayed", "fp8_current", "fp8_block")


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


class ExpertGemms:
    """The expert matrix products alone, each into memory that is ready: what no layer can undercut."""

    def __init__(self, layer: MoELayer, x_SD: Tensor) -> None:
        self.x_SD = x_SD
        p = {name: parameter.detach() for name, parameter in layer.expert_parameters()}
        self.weights = [(p[f"experts.{i}.w_in"], p[f"experts.{i}.w_out"]) for i in layer.local_expert_indices]
        # Twice the fair share of an expert bounds the loads of `set_thresholds`.
        rows, (hidden, width) = 2 * len(x_SD) // len(self.weights), self.weights[0][0].shape
        self.hidden_RF, self.y_RD = x_SD.new_empty(rows, hidden), x_SD.new_empty(rows, width)
        self.grads = [(torch.empty_like(w_in), torch.empty_like(w_out)) for w_in, w_out in self.weights]

    @torch.no_grad()
    def __call__(self, rows_per_expert: list[int], *, has_backward: bool) -> None:
        for rows, x_KD, (w_in_FD, w_out_DF), (grad_in_FD, grad_out_DF) in zip(
            rows_per_expert, self.x_SD.split(rows_per_expert), self.weights, self.grads, strict=True
        ):
            hidden_KF, y_KD = self.hidden_RF[:rows], self.y_RD[:rows]
            torch.mm(x_KD, w_in_FD.t(), out=hidden_KF)
            torch.mm(hidden_KF, w_out_DF.t(), out=y_KD)
            if has_backward:
                torch.mm(y_KD.t(), hidden_KF, out=grad_out_DF)
                torch.mm(y_KD, w_out_DF, out=hidden_KF)
                torch.mm(hidden_KF.t(), x_KD, out=grad_in_FD)
                torch.mm(hidden_KF, w_in_FD, out=y_KD)


@torch.no_grad()
def set_thresholds(layer: MoELayer, x_SD: Tensor) -> list[int]:
    """Let the predictor give the experts from half to one and a half of a fair share of these tokens, one a
    token on average.

    Returns the rows of every expert.
    """
    probability_SE = layer.router.predictor(x_SD).sigmoid()
    num_tokens, num_experts = probability_SE.shape
    rows = [round(num_tokens / num_experts * (0.5 + i / max(1, num_experts - 1))) for i in range(num_experts)]
    rows[-1] += num_tokens - sum(rows)
    ordered_SE = probability_SE.sort(dim=0, descending=True).values
    layer.router.predictor.update_threshold(ordered_SE[rows, torch.arange(num_experts)])
    return (probability_SE > layer.router.predictor.threshold()).sum(dim=0).tolist()


def run_phase(
    network: nn.Module | Callable[..., object],
    x_SD: Tensor,
    grad_SD: Tensor,
    phase: str,
    arguments: tuple[RoutingContext, ...],
) -> Tensor:
    """One call of `network`; with the phase's backward pass, then without gradients left behind."""
    with torch.set_grad_enabled(phase != "inference"):
        answer = network(x_SD, *arguments)
        y_SD, routing = answer if isinstance(answer, tuple) else (answer, None)
    if phase == "forward+backward":
        roots = [y_SD] if routing is None else [y_SD, *routing.aux_losses.values()]
        torch.autograd.backward(roots, [grad_SD, *[None] * (len(roots) - 1)])
    return y_SD


def layer_settings(device: torch.device) -> dict[str, dict[str, str]]:
    """Backend and precision of each layer that the device can run, by contender."""
    names = {backend: {"backend": backend} for backend in CPU_BACKENDS}
    if device.type == "cuda":
        from diffmoe_scale.moe.transformer_engine import load_transformer_engine

        try:
            te = load_transformer_engine()
        except ValueError as error:
            print(f"transformer_engine: not measured: {error}", file=sys.stderr)
            return names
        names["transformer_engine"] = {"backend": "transformer_engine"}
        checks = (te.is_fp8_available, te.is_fp8_available, te.is_fp8_block_scaling_available)
        names |= {
            precision: {"backend": "transformer_engine", "precision": precision}
            for precision, check in zip(FP8_PRECISIONS, checks, strict=True)
            if check()
        }
    return names


def bench_shape(
    width: int, num_experts: int, num_tokens: int, parsed: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """A row for every phase and contender at one shape."""
    dtype = DTYPES[parsed.dtype]
    generator = torch.Generator().manual_seed(0)
    x_SD, grad_SD = (torch.randn(num_tokens, width, generator=generator).to(device, dtype) for _ in range(2))
    x_SD.requires_grad_()
    dense = FeedForward(width, 4 * width, is_gated=False)
    dense.initialize(generator)
    dense.to(device, dtype)
    layers = {
        name: make_layer(
            MoEConfig(num_experts=num_experts, **settings), width=width, groups=single_rank_groups()
        ).to(device, dtype)
        for name, settings in layer_settings(device).items()
    }
    uneven = {name: set_thresholds(layer, x_SD) for name, layer in layers.items()}["loop"]
    gemms, even = ExpertGemms(layers["loop"], x_SD.detach()), [num_tokens // num_experts] * num_experts
    networks: dict[str, Callable[..., object]] = {
        "dense": dense,
        "scatter_loop": partial(scatter_loop, layers["loop"]),
        **layers,
    }
    num_samples = max(1, num_tokens // SAMPLE_TOKENS)
    table: list[dict[str, object]] = []
    for phase in PHASES:
        selection = Selection("threshold" if phase == "inference" else "train")
        context = RoutingContext(num_samples, x_SD.detach(), x_SD.new_zeros(num_samples, width), selection)

        def call(name: str, *, phase: str = phase, context: RoutingContext = context) -> None:
            run_phase(networks[name], x_SD, grad_SD, phase, () if name == "dense" else (context,))
            for tensor in (
                x_SD,
                *dense.parameters(),
                *(p for layer in layers.values() for p in layer.parameters()),
            ):
                tensor.grad = None

        calls: dict[str, Callable[[], None]] = {name: partial(call, name) for name in networks}
        calls["expert_gemms"] = partial(
            gemms, uneven if phase == "inference" else even, has_backward=phase == "forward+backward"
        )
        seconds = time_interleaved(calls, rounds=parsed.rounds, device=device)
        for name, times in seconds.items():
            ms = quartiles([1e3 * second for second in times])
            row: dict[str, object] = {
                "shape": f"{width}x{num_experts}x{num_tokens}",
                "phase": phase,
                "contender": name,
            }
            row |= {"ms": ms, "tokens_per_s": 1e3 * num_tokens / ms["median"]}
            row |= {
                "over_dense": ratios(times, seconds["dense"]),
                "over_gemms": ratios(times, seconds["expert_gemms"]),
            }
            table.append(row | measure_memory(calls[name], device))
    return table


def make_layer(config: MoEConfig, *, width: int, groups: ProcessGroupCollection) -> MoELayer:
    layer = MoELayer(config, width=width, layer_index=0, groups=groups)
    layer.initialize(0)
    return layer


def bench_pool(context: ParallelContext, shape: tuple[int, int, int], rounds: int) -> dict[str, object]:
    """A row: forward+backward with the pool over all ranks, and the selection in that pool alone, as this
    rank sees them."""
    width, num_experts, num_tokens = shape
    device, groups = context.device, context.megatron_groups
    layer = make_layer(
        MoEConfig(num_experts=num_experts, pool="data_parallel"), width=width, groups=groups
    ).to(device)
    generator = torch.Generator().manual_seed(context.rank)
    x_SD, grad_SD = (torch.randn(num_tokens, width, generator=generator).to(device) for _ in range(2))
    x_SD.requires_grad_()
    num_samples = max(1, num_tokens // SAMPLE_TOKENS)
    arguments = RoutingContext(
        num_samples, x_SD.detach(), x_SD.new_zeros(num_samples, width), Selection("train")
    )
    values_SX = torch.cat(
        [layer.router.scores(layer.router.gating(x_SD, arguments)), layer.router.predictor(x_SD)], dim=1
    ).detach()

    def select() -> None:
        scores_EP, prediction_EP = gather_pool(values_SX, layer.router.pool_group).split(num_experts)
        k = scores_EP.shape[1] // num_experts
        select_top(scores_EP, k)
        kth_largest(prediction_EP, k)

    def call() -> None:
        run_phase(layer, x_SD, grad_SD, "forward+backward", (arguments,))
        layer.zero_grad()

    # A barrier before each call, so that neither pays for ranks that the last one left apart.
    barrier = partial(torch.distributed.barrier, context.control_group)
    seconds = time_interleaved(
        {"layer": call, "selection": select}, rounds=rounds, device=device, before=barrier
    )
    row: dict[str, object] = {
        "shape": "x".join(map(str, shape)),
        "phase": "forward+backward",
        "ranks": context.world_size,
    }
    row |= {
        f"{name}_ms": quartiles([1e3 * second for second in seconds[name]]) for name in ("layer", "selection")
    }
    return row | {"share": ratios(seconds["selection"], seconds["layer"])}


def _pool_rank(rank: int, port: int, shapes: list[tuple[int, int, int]], parsed: argparse.Namespace) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(parsed.ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    context = initialize(expert_parallel=1, timeout_s=120)
    torch.set_num_threads(parsed.threads)
    table = [bench_pool(context, shape, parsed.rounds) for shape in shapes]
    if context.is_main:
        report(table, parsed.output, context.device)
    torch.distributed.destroy_process_group()


def report(table: list[dict[str, object]], output: Path | None, device: torch.device) -> None:
    print(format_table(table))
    if output is not None:
        write_result(output, device, table=table)


def shape(text: str) -> tuple[int, int, int]:
    """`WIDTHxEXPERTSxTOKENS`, tokens of one rank."""
    width, num_experts, num_tokens = (int(part) for part in text.split("x"))
    if (
        num_tokens % num_experts
        or num_tokens < 2 * num_experts
        or (num_tokens > SAMPLE_TOKENS and num_tokens % SAMPLE_TOKENS)
        or width % 8
    ):
        raise argparse.ArgumentTypeError(
            f"{text}: expected a width that 8 divides, and tokens in multiples of the experts, at least "
            "two an expert, "
            f"and of {SAMPLE_TOKENS} (a sample) where there are more"
        )
    return width, num_experts, num_tokens


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        help="WIDTHxEXPERTSxTOKENS; may be repeated (384x16x8192 and 1024x8x4096)",
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="counted rounds; each times every contender once (10)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of a process (2)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="format of weights and activations (fp32)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="(cuda if there is one)",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        default=1,
        help="above 1: measure the selection in a pool over this many ranks instead (1)",
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    parsed = parser.parse_args(arguments)
    if min(parsed.rounds, parsed.threads, parsed.ranks) < 1:
        parser.error("--rounds, --threads and --ranks must be at least 1")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    shapes = parsed.shape or [(384, 16, 8192), (1024, 8, 4096)]
    if parsed.ranks > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        # The packages are imported once, in a server that each rank is a copy of.
        torch.multiprocessing.set_forkserver_preload(
            ["diffmoe_scale.moe.layer", "diffmoe_scale.parallel.context"]
        )
        torch.multiprocessing.start_processes(
            _pool_rank, (port, shapes, parsed), nprocs=parsed.ranks, start_method="forkserver"
        )
        return 0
    torch.set_num_threads(parsed.threads)
    device = torch.device(parsed.device)
    if device.type == "cpu":
        keep_freed_memory()
    table = [row for shape in shapes for row in bench_shape(*shape, parsed, device)]
    report(table, parsed.output, device)
    for width, num_experts, num_tokens in shapes:
        bytes_SED = num_tokens * num_experts * width * DTYPES[parsed.dtype].itemsize
        print(
            f"{width}x{num_experts}x{num_tokens}: a buffer of tokens x experts x width would be "
            f"{bytes_SED / MIB:,.0f} MiB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
