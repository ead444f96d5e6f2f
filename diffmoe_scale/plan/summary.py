"""A whole plan of a run: its own layout, the fastest that fits, how it grows, how long it takes."""

import json
from dataclasses import asdict, dataclass, replace

from diffmoe_scale.config.schema import Config
from diffmoe_scale.plan.alignment import describe_alignment
from diffmoe_scale.plan.epochs import Epochs
from diffmoe_scale.plan.fit import fit_to_ranks
from diffmoe_scale.plan.flops import Flops
from diffmoe_scale.plan.parameters import ModelSize
from diffmoe_scale.plan.search import Layout, Plan, Planner, layout_of, order_of
from diffmoe_scale.plan.step_time import fp8_pays_from
from diffmoe_scale.plan.text import (
    describe_memory,
    describe_model,
    describe_search,
    describe_time,
    describe_transfers,
    gigabytes,
    table,
)
from diffmoe_scale.telemetry.hardware import Gpu
from diffmoe_scale.words import counted

LARGEST_CLUSTER = 4096
TRIED_GROWTHS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Summary:
    """What `python -m diffmoe_scale.plan` prints."""

    config: Config
    ranks: int
    gpu: Gpu
    usable: int
    size: ModelSize
    flops: Flops
    own: Plan
    found: list[Plan]
    """By the search, the best first; empty without one."""
    scaling: list[tuple[int, Plan]]
    """The own layout, or the best where that does not fit, on growing numbers of GPUs, with as many samples
    on each."""
    is_frozen_known: bool
    fp8_tokens: float | None
    epochs: Epochs
    price_per_hour: float
    changes: list[str]
    """What of the config the GPUs cannot share evenly, and what was planned instead."""

    @property
    def best(self) -> Plan:
        """The fastest that fits, or the one that lacks least."""
        return min([*self.found[:1], self.own], key=order_of)

    @property
    def fits(self) -> bool:
        return self.best.fits

    def text(self) -> str:
        """For a reader."""
        own = self.own
        verdict = "fits" if own.fits else f"does NOT fit: it lacks {gigabytes(-own.free_bytes)}"
        lines = [
            *self.changes,
            *describe_model(self.size, self.flops),
            *describe_alignment(self.config),
            "",
            f"layout of the config on {self.ranks} x {self.gpu.name}: {own.layout}: {verdict}",
            *describe_memory(own.memory, usable=self.usable),
            *(
                []
                if self.is_frozen_known
                else ["  (text encoders and autoencoder are not there: not counted)"]
            ),
            *describe_time(own, self.ranks),
            *describe_transfers(own.transfers),
            "",
            *(describe_search(self.found) if self.found else []),
            *self._describe_best(),
            *self._describe_run(),
            *self._describe_scaling(),
            self._describe_fp8(),
        ]
        return "\n".join(lines)

    def _describe_best(self) -> list[str]:
        if not self.found or not self.best.fits:
            return []
        layout = self.best.layout
        settings = " ".join(f"{key}={value}" for key, value in settings_of(layout).items())
        return [f"fastest: {settings}", ""]

    def _describe_run(self) -> list[str]:
        run, best = self.config.run, self.best
        hours = run.steps * best.time.total / 3600
        samples = run.steps * run.global_batch / 1e6
        line = f"{counted(run.steps, 'step', ',')} of {run.global_batch:,}: {samples:,.1f} M samples"
        if best.fits:
            line += f", {hours:,.1f} hours, {hours * self.ranks:,.0f} GPU-hours (estimate)"
            price = hours * self.ranks * self.price_per_hour
            line += f", {price:,.0f} at {self.price_per_hour:g} an hour" if price else ""
        lines = [line]
        if self.epochs.samples:
            epoch = self.epochs.samples / run.global_batch
            lines.append(f"epoch: {counted(self.epochs.samples, 'sample', ',')}, {epoch:,.1f} steps")
        by_bucket = self.epochs.steps_by_bucket or {}
        rows = [(f"  width over height {name}", f"{steps:,.1f} steps") for name, steps in by_bucket.items()]
        return lines + (table(rows) if rows else [])

    def _describe_scaling(self) -> list[str]:
        if not self.scaling:
            return []
        first = self.scaling[0][1].images_per_s / self.scaling[0][0]
        rows = [("GPUs", "images/s", "of linear", "memory of a GPU (GB)")]
        rows += [
            (
                f"{ranks}",
                f"{plan.images_per_s:,.0f}",
                f"{100 * plan.images_per_s / ranks / first:.0f} %",
                f"{plan.memory.total / 1e9:.1f}",
            )
            for ranks, plan in self.scaling
        ]
        layout = self.scaling[0][1].layout
        return [f"scaling of {layout}, as many samples on each GPU (estimate)", *table(rows)]

    def _describe_fp8(self) -> str:
        if self.fp8_tokens is None:
            return "FP8 experts: never faster by this estimate, or the GPU or the model has none"
        return f"FP8 experts pay from {self.fp8_tokens:,.0f} tokens of a rank and micro-batch on (estimate)"

    def advice(self) -> str:
        """By how much nothing fits, and what to change."""
        sentence = (
            f"no layout fits: {self.best.layout} needs {gigabytes(self.best.memory.total)}, and "
            f"{self.gpu.name} has {gigabytes(self.usable)} for it: it lacks "
            f"{gigabytes(-self.best.free_bytes)}"
        )
        return f"{sentence}; {'; or '.join(self._ways_out())}"

    def _ways_out(self) -> list[str]:
        ways = []
        if not self.found:
            ways.append("leave out --layout-only to search for another layout")
        layout = self.best.layout
        offloaded = self._plan(replace(layout, is_offloaded=True), growth=1)
        if offloaded.fits and not layout.is_offloaded:
            host = offloaded.memory.host / 1e9
            ways.append(f"set parallel.offload_optimizer=true ({host:.0f} GB of host memory a GPU; slow)")
        growth = next((n for n in TRIED_GROWTHS if self._plan(layout, growth=n).fits), None)
        if growth is not None:
            ways.append(f"take {growth * self.ranks} GPUs, over which the optimizer's state is spread")
        ways.append("take GPUs with more memory, or a smaller model.width, model.depth or moe.num_experts")
        return ways

    def _plan(self, layout: Layout, *, growth: int) -> Plan:
        return grown(self.config, ranks=self.ranks, gpu=self.gpu, growth=growth).plan(layout)

    def json(self) -> str:
        """For a program: bytes, seconds, and all layouts."""
        plans = {"own": self.own, "best": self.best}
        tree = {
            "gpus": self.ranks,
            "gpu": self.gpu.name,
            "changes": self.changes,
            "usable_bytes": self.usable,
            "parameters": asdict(self.size),
            "flops_forward": self.flops.forward,
            "flops_backward": self.flops.backward,
            "flops_recomputed": self.flops.recomputed,
            "fp8_pays_from_tokens": self.fp8_tokens,
            "samples": self.epochs.samples,
            "steps_an_epoch_by_bucket": dict(self.epochs.steps_by_bucket or {}),
            **{name: plan_tree(plan) for name, plan in plans.items()},
            "layouts": [plan_tree(plan) for plan in self.found],
            "scaling": [{"gpus": ranks, **plan_tree(plan)} for ranks, plan in self.scaling],
        }
        return json.dumps(tree, indent=1)


def summarize(
    config: Config, *, ranks: int, gpu: Gpu, epochs: Epochs, price_per_hour: float, has_search: bool
) -> Summary:
    """Plan a run; with a search, one that is nearest to a config which `ranks` GPUs cannot run.

    Raises: ValueError if networks do not fit each other; without a search, if the config's own layout cannot
    be run.
    """
    config, changes = fit_to_ranks(config, ranks) if has_search else (config, [])
    planner = Planner(config, ranks=ranks, gpu=gpu)
    own = planner.plan(layout_of(config))
    found = planner.search() if has_search else []
    layout = own.layout if own.fits or not found else found[0].layout
    scaling = []
    growth = 1
    while growth * ranks <= LARGEST_CLUSTER and (own.fits or (found[:1] and found[0].fits)):
        scaling.append((growth * ranks, grown(config, ranks=ranks, gpu=gpu, growth=growth).plan(layout)))
        growth *= 2
    return Summary(
        config=config,
        ranks=ranks,
        gpu=gpu,
        usable=planner.usable,
        size=planner.size,
        flops=planner.flops(config.run.micro_batch),
        own=own,
        found=found,
        scaling=scaling,
        is_frozen_known=planner.frozen is not None,
        fp8_tokens=fp8_pays_from(config, gpu),
        epochs=epochs,
        price_per_hour=price_per_hour,
        changes=changes,
    )


def grown(config: Config, *, ranks: int, gpu: Gpu, growth: int) -> Planner:
    """The same run on `growth` times as many GPUs, each with as many samples."""
    larger = replace(config, run=replace(config.run, global_batch=growth * config.run.global_batch))
    return Planner(larger, ranks=growth * ranks, gpu=gpu)


def settings_of(layout: Layout) -> dict[str, object]:
    """What to write for a layout."""
    return {
        "parallel.expert_parallel": layout.expert_parallel,
        "parallel.zero_stage": layout.zero_stage,
        "run.micro_batch": layout.micro_batch,
        "model.activation_checkpointing": layout.checkpointing,
    }


def plan_tree(plan: Plan) -> dict[str, object]:
    """A layout as plain values."""
    return {
        **settings_of(plan.layout),
        "fits": plan.fits,
        "free_bytes": plan.free_bytes,
        "memory_bytes": {**asdict(plan.memory), "total": plan.memory.total},
        "estimated_seconds": {**asdict(plan.time), "total": plan.time.total},
        "estimated_images_per_s": plan.images_per_s,
        "estimated_mfu": plan.mfu,
        "sent": [asdict(transfer) for transfer in plan.transfers],
    }
