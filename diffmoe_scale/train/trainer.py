"""One training step, and what it works on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any  # JSON trees

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.store import CheckpointStore
from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.order.plan import BatchPlan, Position
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.moe.thresholds import update_routers
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.alignment import Alignment
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.guard import Guard
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from diffmoe_scale.train.optim import learning_rate
from diffmoe_scale.train.reporter import Reporter
from diffmoe_scale.train.sample_metrics import SampleMetrics
from diffmoe_scale.train.stop import StopSignals
from diffmoe_scale.train.validation import Validation


@dataclass(kw_only=True)
class Training:
    """What a run consists of, and where it stands."""

    config: Config
    context: ParallelContext
    directory: RunDirectory
    networks: Networks
    engine: Engine
    alignment: Alignment | None
    """None without alignment.encoder."""
    store: CheckpointStore
    validation: Validation
    sample_metrics: SampleMetrics | None
    """None without telemetry.metrics_every."""
    reader: Reader
    plan: BatchPlan
    batches: Iterator[Batch]
    guard: Guard
    stop: StopSignals
    step: int
    position: Position
    """In the data, after the last whole step."""
    line: Mapping[str, Any]
    """`Reporter.state` at the last save, or of the checkpoint that the run continues from."""

    def reporter(self) -> Reporter:
        """Of the steps from here on."""
        return Reporter(
            self.config,
            self.context,
            self.directory,
            moe_layers=self.networks.denoiser.moe_layers(),
            start_step=self.step,
            line=self.line,
        )


def train_step(run: Training, reporter: Reporter) -> None:
    """One optimizer step over the global batch, then routers' state and weight average, and its judgement."""
    engine, context, config = run.engine, run.context, run.config
    reporter.begin_step(run.step)
    statistics: list[Tensor] = []
    selection = Selection(rule="train", step=run.step, is_observed=reporter.is_due(run.step))
    for _ in range(engine.accumulation):
        with reporter.phase("data"):
            batch = next(run.batches)
        reporter.add_batch(batch)
        with reporter.phase("transfer"):
            batch = batch.to(context.device)
        with reporter.phase("encode"):
            latents_BCHW = latents_of(batch, run.networks.autoencoder, context.device)
            condition = condition_of(batch, run.networks)
            aligned = None if run.alignment is None else run.alignment.of(batch, latents_BCHW, step=run.step)
        check_batch(run, batch, latents_BCHW)
        with reporter.phase("forward"):
            loss = denoising_loss(
                engine,
                run.networks.objective,
                batch,
                latents_BCHW,
                condition,
                seed=config.run.seed,
                selection=selection,
                aligned=aligned,
            )
        with reporter.phase("backward"):
            engine.backward(loss.total)
        reporter.add_loss(batch, loss)
        run.guard.add(batch, loss)
        if loss.routings:
            statistics.append(torch.stack([routing.statistic_X for routing in loss.routings]))
    with reporter.phase("optimizer"):
        result = engine.step(learning_rate(run.step, config), is_observed=selection.is_observed)
        if run.alignment is not None:
            run.alignment.step(result.learning_rate, is_skipped=result.is_skipped)
    if not result.is_skipped:
        update_routers(run.networks.denoiser.moe_layers(), statistics, context.dp_group)
    reporter.add_step(result)
    reporter.add_verdict(run.guard.judge(run.step, is_skipped=result.is_skipped))


def check_batch(run: Training, batch: Batch, latents_BCHW: Tensor) -> None:
    """Raises: RunError for a micro-batch of another shape than the plan's. The ranks would wait for each
    other over tensors that do not fit, to the time-out."""
    shape = run.plan.shapes(run.step)[run.plan.next_bucket(run.position)]
    factor, count = run.networks.autoencoder.factor, len(latents_BCHW)
    height, width = (factor * edge for edge in latents_BCHW.shape[2:])
    if (count, height, width) == (shape.count, shape.size.height, shape.size.width):
        return
    rank, host = run.context.rank, run.context.hosts[run.context.rank]
    raise RunError(
        f"step {run.step}: rank {rank} on {host} has a micro-batch of {count} images of {width} x {height}, "
        f"first {batch.keys[0]}; expected {shape.count} of {shape.size.width} x {shape.size.height}: the "
        "data or the settings of that host differ from the others'"
    )
