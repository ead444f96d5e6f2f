"""The first sections of the report: how far a run is, and its settings."""

import math
import statistics
import time
from collections.abc import Sequence

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.report.html import Markup, element, facts, fold, join, missing, table
from diffmoe_scale.report.training import Record, finite
from diffmoe_scale.words import counted

RECENT_RECORDS = 20
SPEED = "throughput/images_per_s"
MAX_CONFIG = 1_000_000
"""Letters of config.yaml that are shown."""


def status_section(
    records: Sequence[Record], config: Config | None, directory: RunDirectory, train_command: str
) -> Markup:
    """How far the run is, how fast, and its last losses."""
    if not records:
        return missing("Nothing has been trained yet. To train:", train_command)
    last = records[-1]
    target = config.run.steps if config else last["step"]
    speeds = [value for record in records[-RECENT_RECORDS:] if (value := finite(record, SPEED))]
    seconds, waited = _training_seconds(records)
    checkpoints = ["none", *(path.name for path in complete_checkpoints(directory.checkpoints))]
    share = f"{100 * waited / seconds:.0f} % waiting for data" if seconds else ""
    speed = f"{statistics.median(speeds):,.1f}" if speeds else "not logged"
    entries = [
        ("Steps", f"{last['step']:,}", "complete" if last["step"] >= target else f"of {target:,}"),
        ("Images seen", f"{finite(last, 'samples'):,.0f}", ""),
        ("Training time", _duration(seconds), share),
        ("Images a second", speed, "median of the last lines" if speeds else ""),
        *_last_value(records, "loss/diffusion", "Training loss"),
        *_last_value(records, "loss/validation", "Validation loss"),
        *_last_value(records, "memory/peak_gib", "Peak memory, GiB"),
        (
            "Last line",
            _date(finite(last, "time", math.nan)),
            f"newest checkpoint: {checkpoints[-1]}",
        ),
    ]
    return facts(entries)


def settings_section(config: Config | None, directory: RunDirectory, train_command: str) -> Markup:
    """The settings that say most, and config.yaml to unfold."""
    title = element("h2", "Settings")
    if not directory.config.is_file():
        text = "The run directory has no config.yaml; training writes it:"
        return join([title, missing(text, train_command)])
    text = directory.config.read_text(encoding="utf-8", errors="replace")[:MAX_CONFIG]
    if config is None:
        note = element("p", "config.yaml does not fit this version of the package.", kind="missing")
        return join([title, note, fold("config.yaml", text)])
    return join([title, table(_rows(config)), fold("All settings (config.yaml)", text)])


def _rows(config: Config) -> list[tuple[str, str]]:
    model, sampling, optimizer = config.model, config.sampling, config.optimizer
    batch = (
        f"{counted(config.run.global_batch, 'sample')} a step in micro-batches of {config.run.micro_batch}"
    )
    shape = (
        f"{counted(model.depth, 'block')} of width {model.width}, {counted(model.heads, 'head')}, "
        f"patch {model.patch_size}"
    )
    diffusion = f"prediction {config.diffusion.prediction}, time {config.diffusion.time_sampling}"
    layout = f"ZeRO {config.parallel.zero_stage}, expert parallel {config.parallel.expert_parallel}"
    name = {"adamw": "AdamW", "muon": "Muon"}[optimizer.kind]
    rate = f"{name}, peak rate {optimizer.learning_rate:g}, {batch}"
    return [
        ("Model", f"{shape}, {_variants(model)}{model.conditioning}-conditional"),
        ("Images", f"{_images(config)}, autoencoder {config.autoencoder.kind}"),
        ("Experts", _experts(config)),
        ("Objective", f"{config.diffusion.kind}, {diffusion}"),
        ("Optimizer", f"{rate}, weight average {optimizer.ema_decay:g}"),
        ("Layout", f"{layout}, {model.precision}"),
        (
            "Sampling",
            f"{counted(sampling.steps, 'step')}, guidance {sampling.guidance:g}, selection "
            f"{sampling.selection}",
        ),
        ("Seed", str(config.run.seed)),
    ]


def _variants(model: ModelConfig) -> str:
    """What the blocks have beside the paper's."""
    names = {
        "joint attention": model.attention == "joint",
        "2-D RoPE": model.positions == "rope2d",
        "QK-norm": model.qk_norm == "rms",
        "shared modulation": model.modulation == "shared",
    }
    return "".join(f"{name}, " for name, is_there in names.items() if is_there)


def _images(config: Config) -> str:
    size = config.model.image_size
    if config.buckets.enabled:
        return f"{counted(len(config.buckets.aspects), 'aspect ratio')} of at most {size**2} pixels"
    return f"{size} x {size} pixels"


def _experts(config: Config) -> str:
    moe = config.moe
    if not moe.num_experts:
        return "none, a dense model"
    every = {1: "", 2: "second ", 3: "third "}.get(moe.every, f"{moe.every}th ")
    dense = f" but the first {moe.first_dense}" if moe.first_dense else ""
    where = f"{moe.num_experts} in every {every}block{dense}, router {moe.router}"
    return f"{where}, capacity {moe.capacity:g}, pool {moe.pool}, backend {moe.backend}"


def _last_value(records: Sequence[Record], name: str, title: str) -> list[tuple[str, str, str]]:
    known = [record for record in records if isinstance(record.get(name), float)]
    return [(title, f"{known[-1][name]:.4g}", f"at step {known[-1]['step']:,}")] if known else []


def _training_seconds(records: Sequence[Record]) -> tuple[float, float]:
    """Seconds spent in steps, pauses between a stop and its resume left out; and how many of them waiting for
    data."""
    seconds = waited = 0.0
    previous_step = 0
    for record in records:
        steps = record["step"] - previous_step
        seconds += steps * finite(record, "time/step_s")
        waited += steps * finite(record, "time/data_s")
        previous_step = record["step"]
    return seconds, waited


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "no date"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or not 0 <= seconds < 1e12:
        return "unknown"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {second:02d} s"
