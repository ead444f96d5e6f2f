"""The selection of experts in a pool over several ranks, against the whole layer."""

import os
import socket
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing

from diffmoe_scale.bench.layer import context_of, run_phase
from diffmoe_scale.bench.options import LayerOptions, LayerShape
from diffmoe_scale.bench.timing import quartiles, ratios, report, time_interleaved
from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.fused_selection import select_top
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.selection import gather_pool, kth_largest
from diffmoe_scale.parallel.context import ParallelContext, initialize

PHASE = "forward+backward"


def bench_pools(options: LayerOptions, output: Path | None) -> None:
    """Start the ranks; the first one prints the table and writes it to `output`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # The packages are imported once, in a server that each rank is a copy of.
    torch.multiprocessing.set_forkserver_preload(
        ["diffmoe_scale.moe.layer", "diffmoe_scale.parallel.context"]
    )
    torch.multiprocessing.start_processes(
        _run_rank, (port, options, output), nprocs=options.ranks, start_method="forkserver"
    )


def _run_rank(rank: int, port: int, options: LayerOptions, output: Path | None) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(options.ranks),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    context = initialize(expert_parallel=1, timeout_s=120)
    torch.set_num_threads(options.threads)
    table = [bench_pool(context, shape, options.rounds) for shape in options.shapes]
    if context.is_main:
        report(table, context.device, output)
    torch.distributed.destroy_process_group()


def bench_pool(context: ParallelContext, shape: LayerShape, rounds: int) -> dict[str, object]:
    """A row: forward+backward with the pool over all ranks, and the selection in that pool alone, as this
    rank sees them. Collective over all ranks."""
    config = MoEConfig(num_experts=shape.num_experts, pool="data_parallel")
    layer = MoELayer(config, width=shape.width, layer_index=0, groups=context.megatron_groups)
    layer.initialize(0)
    layer.to(context.device)
    generator = torch.Generator().manual_seed(context.rank)
    x_SD, grad_SD = (
        torch.randn(shape.num_tokens, shape.width, generator=generator).to(context.device) for _ in range(2)
    )
    x_SD.requires_grad_()
    arguments = context_of(x_SD, PHASE)
    scores_SE = layer.router.scores(layer.router.gating(x_SD, arguments))
    values_SX = torch.cat([scores_SE, layer.router.predictor(x_SD)], dim=1).detach()

    def select() -> None:
        gathered = gather_pool(values_SX, layer.router.pool_group)
        scores_EP, prediction_EP = gathered.split(shape.num_experts)
        k = scores_EP.shape[1] // shape.num_experts
        select_top(scores_EP, k)
        kth_largest(prediction_EP, k)

    def call() -> None:
        run_phase(layer, x_SD, grad_SD, PHASE, (arguments,))
        layer.zero_grad()

    # A barrier before each call, so that neither pays for ranks that the last one left apart.
    barrier = partial(torch.distributed.barrier, context.control_group)
    seconds = time_interleaved(
        {"layer": call, "selection": select}, rounds=rounds, device=context.device, before=barrier
    )
    return {
        "shape": str(shape),
        "phase": PHASE,
        "ranks": context.world_size,
        "layer_ms": quartiles([1e3 * second for second in seconds["layer"]]),
        "selection_ms": quartiles([1e3 * second for second in seconds["selection"]]),
        "share": ratios(seconds["selection"], seconds["layer"]),
    }
