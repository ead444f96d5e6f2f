"""What a run says of itself while it trains: metrics.jsonl, trackers, progress."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self  # Any: JSON values

import torch.distributed as dist

from diffmoe_scale.config.load import config_tree
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import FAILURES, NOTES, Batch
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import average_capacity
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.plan.parts import GRADIENT_PARTS
from diffmoe_scale.telemetry.meter import Means, Meter
from diffmoe_scale.telemetry.metrics import MetricsWriter, MetricValue
from diffmoe_scale.telemetry.phases import Phases
from diffmoe_scale.telemetry.progress import Progress
from diffmoe_scale.telemetry.trackers import Tracker, build_trackers
from diffmoe_scale.train.alarms import Alarms, count_extremes
from diffmoe_scale.train.engine import StepResult, accumulation_steps
from diffmoe_scale.train.expert_health import ExpertHealth, write_experts
from diffmoe_scale.train.guard import Verdict
from diffmoe_scale.train.loss import StepLoss
from diffmoe_scale.train.speed import Speed, peak_memory_gib

logger = logging.getLogger(__name__)

STEP_PHASES = ("data", "transfer", "encode", "forward", "backward", "optimizer")
ALL_TO_ALL = "all_to_all"
"""Inside of forward and backward, in observed steps alone: two events for each call would cost more than they
tell."""
OTHER_PHASES = ("validation", "samples", "checkpoint")
"""Between steps; their seconds are spread over the steps of a line."""
KINDS = [f"data/bad/{kind}" for kind in FAILURES] + [f"data/note/{kind}" for kind in NOTES]
"""Names of `Batch.count_kinds`."""


class Reporter:
    """Collects a step's figures on every rank and, at log steps, writes their means on the main rank."""

    def __init__(
        self,
        config: Config,
        context: ParallelContext,
        directory: RunDirectory,
        *,
        moe_layers: list[MoELayer],
        start_step: int,
        line: Mapping[str, Any],
    ) -> None:
        """`line` is the `state` of the checkpoint that the run continues from: what its next line holds
        already."""
        self.config, self.context, self.moe_layers = config, context, moe_layers
        self._directory = directory
        self._blocks = [layer.layer_index for layer in moe_layers]
        self._accumulation = accumulation_steps(config, ranks=context.data_ranks)
        self._meter, self._tallies = Meter(context.device), Meter(context.device)
        """Figures that a line holds as they are, and those that it is computed from."""
        self.phase = Phases(context.device, (*STEP_PHASES, ALL_TO_ALL, *OTHER_PHASES))
        """`with reporter.phase("forward"):` counts the time inside."""
        self._all_to_all = partial(self.phase, ALL_TO_ALL)
        self.health = ExpertHealth(moe_layers, context.device)
        self._speed = Speed(config, context.device)
        self._extra: dict[str, MetricValue] = {}
        self._last_log_step = line.get("since", start_step)
        if line:
            self._restore(line["ranks"])
        self._step_started = 0.0
        self._alarms: Alarms | None = None
        self._writer: MetricsWriter | None = None
        self._progress: Progress | None = None
        self._trackers: list[Tracker] = []
        if context.is_main:
            self._writer = MetricsWriter(directory.metrics, resume_step=start_step)
            self._progress = Progress(total_steps=config.run.steps, start_step=start_step)
            self._trackers = build_trackers(
                config.telemetry, directory.path, config_tree(config), start_step=start_step
            )
            self._alarms = Alarms(config.alarms, self._blocks, context.hosts, router=config.moe.router)

    def begin_step(self, step: int) -> None:
        """Start the clock; what happens between steps (validation, checkpoints) is not a step's time."""
        for layer in self.moe_layers:
            layer.token_dispatcher.clock = self._all_to_all if self.is_due(step) else nullcontext
        self._step_started = time.monotonic()

    def add_batch(self, batch: Batch) -> None:
        """One micro-batch was read."""
        # Of all ranks' samples in a step, as this micro-batch has it.
        micro_batches = self._accumulation * self.context.data_ranks
        self._tallies.add("images", float(len(batch.keys) * micro_batches))
        self._tallies.add("squares", self._speed.squares(batch) * micro_batches)
        self._tallies.add("unusable", float((batch.weight_B == 0).sum() * micro_batches))
        self._tallies.add("kinds", batch.count_kinds() * micro_batches)

    def is_due(self, step: int) -> bool:
        """A line is written at the end of this step whatever happens in it."""
        return self.config.run.is_due(step, self.config.telemetry.log_every)

    def add_loss(self, batch: Batch, loss: StepLoss) -> None:
        """One micro-batch was computed."""
        for name in (part for part in loss.parts if part.startswith(("loss/", "alignment/"))):
            self._meter.add(name, loss.parts[name])
        count = loss.parts["time_bin_count"]
        self._tallies.add("by_time", loss.parts["time_bin_sum"] / count.clamp(min=1), count)
        if loss.routings:
            self._meter.add("moe/capacity", average_capacity(loss.routings))
        for layer, routing in zip(self.moe_layers, loss.routings, strict=True):
            self._meter.add(f"moe/load/{layer.layer_index}", routing.metrics["load_E"])
        if loss.routings and loss.routings[0].scores_SE is not None:
            self.health.add(loss.routings, loss.parts["time_bin_B"], batch.dropped_B.to(self.context.device))

    def add_step(self, result: StepResult) -> None:
        """One optimizer step is done, or was skipped."""
        self._tallies.add("skipped", float(result.is_skipped))
        if not result.is_skipped and result.squares_P is not None:
            self._tallies.add("squares_of_gradients", result.squares_P)
        if not result.is_skipped:
            self._meter.add("optimizer/gradient_norm", result.gradient_norm)
        self._tallies.add("step_s", time.monotonic() - self._step_started)
        self._extra["optimizer/learning_rate"] = result.learning_rate

    def add_verdict(self, verdict: Verdict) -> None:
        """The step was judged."""
        self._tallies.add("bad", float(verdict.is_bad))
        self._meter.add("defence/z_score", verdict.z_score or 0.0, float(verdict.z_score is not None))

    def add(self, metrics: Mapping[str, MetricValue]) -> None:
        """Figures that go into this step's line as they are."""
        self._extra |= metrics

    def add_image(self, step: int, name: str, path: Path) -> None:
        if self.context.is_main and path.is_file():
            logger.info("step %d: pictures of what it draws now are in %s", step, path)
        for tracker in self._trackers if path.is_file() else ():
            tracker.images(step, name, path)

    def end_step(self, step: int, samples: int) -> None:
        """Write a line, with how many samples were seen, if one is due. Collective over `dp_group` then."""
        if not self.is_due(step) and not any(name.startswith(("loss/", "metrics/")) for name in self._extra):
            if self._progress:
                self._progress.update(step)
            return
        group = self.context.dp_group
        means, tallies = self._meter.means(group), self._tallies.means(group)
        steps = step - self._last_log_step
        self._add_phases(steps)
        health = self.health.take(group)
        if health:
            self._extra |= health.figures
        metrics = self._line(means, tallies, steps=steps)
        metrics |= count_extremes(metrics, self.config.alarms, self._blocks)
        self._extra, self._last_log_step = {}, step
        if self._writer and self._progress and self._alarms:
            self._alarms.check(step, metrics)
            if health:
                write_experts(self._directory.experts, step, health.experts)
            self._writer.write(step, samples, metrics)
            for tracker in self._trackers:
                tracker.log(step, metrics)
            images_per_s = tallies.scalars["images"] / tallies.scalars["step_s"]
            self._progress.update(step, loss=means.scalars["loss/diffusion"], images_per_s=images_per_s)

    def _restore(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        rank, size = self.context.rank, self.context.world_size
        for meter, name in ((self._meter, "meter"), (self._tallies, "tallies")):
            meter.restore([entry[name] for entry in ranks], rank=rank, size=size)
        self.phase.restore([entry["phases"] for entry in ranks], rank=rank)

    def state(self, step: int) -> dict[str, Any]:
        """What the next line holds already after `step`, of each rank, as JSON values; {} right after a line,
        and on other ranks than the main one. Collective over `control_group`."""
        if step == self._last_log_step:
            return {}
        mine = {
            "meter": self._meter.state(),
            "tallies": self._tallies.state(),
            "phases": self.phase.state(),
        }
        ranks: list[Any] = [None] * self.context.world_size
        is_main = self.context.is_main
        dist.gather_object(mine, ranks if is_main else None, dst=0, group=self.context.control_group)
        return {"since": self._last_log_step, "ranks": ranks} if is_main else {}

    def _add_phases(self, steps: int) -> None:
        """Seconds a step since the last line. Collective over `dp_group`."""
        found = self.phase.take(self.context.dp_group)
        all_to_all = found.pop(ALL_TO_ALL)
        if all_to_all.slowest_s > 0:
            self._extra[f"time/{ALL_TO_ALL}_s"] = all_to_all.mean_s
        for phase, took in found.items():
            self._extra[f"time/{phase}_s"] = took.mean_s / steps
            if phase in STEP_PHASES:
                self._extra[f"time/median/{phase}_s"] = took.median_s / steps
                self._extra[f"time/slowest/{phase}_s"] = took.slowest_s / steps
                self._extra[f"time/slowest/{phase}_rank"] = float(took.slowest_rank)

    def _line(self, means: Means, tallies: Means, *, steps: int) -> dict[str, MetricValue]:
        """The line of a log step from the means over the `steps` steps since the last."""
        metrics: dict[str, MetricValue] = means.scalars | means.vectors | self._extra
        by_time = enumerate(tallies.vectors["by_time"])
        metrics |= {f"loss/by_time/{tenth}": loss for tenth, loss in by_time if not math.isnan(loss)}
        counts = zip(KINDS, tallies.vectors["kinds"], strict=True)
        metrics |= {name: float(count) for name, mean in counts if (count := round(mean * steps))}
        for layer in self.moe_layers:
            for name, state_X in layer.router.state().items():
                metrics[f"moe/{name}/{layer.layer_index}"] = state_X.tolist()
        means_a_step = tallies.scalars
        squares_per_s = means_a_step["squares"] / means_a_step["step_s"]
        metrics |= self._speed.metrics(squares_per_s, ranks=self.context.world_size)
        metrics |= self._gradient_norms(tallies.vectors.get("squares_of_gradients", []))
        return metrics | {
            "time/step_s": means_a_step["step_s"],
            "throughput/images_per_s": means_a_step["images"] / means_a_step["step_s"],
            "data/bad_samples": float(round(means_a_step["unusable"] * steps)),
            "optimizer/skipped_steps": float(round(means_a_step["skipped"] * steps)),
            "defence/bad_steps": float(round(means_a_step["bad"] * steps)),
            "memory/peak_gib": peak_memory_gib(self.context.device),
        }

    def _gradient_norms(self, mean_squares: list[float]) -> dict[str, float]:
        """By part, from the mean over ranks of the squares that each owns; a part that has none is left
        out."""
        pairs = zip(GRADIENT_PARTS, mean_squares, strict=False)
        ranks = self.context.world_size
        return {
            f"optimizer/gradient_norm/{part}": math.sqrt(ranks * mean) for part, mean in pairs if mean > 0
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer and self._progress:
            self._progress.close()
            self._writer.close()
        for tracker in self._trackers:
            tracker.close()
