"""RUN/report.html: what a run did, on one page that needs nothing else. Also its scores as text."""

import io
import json
import logging
import math
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # lines of metrics.jsonl and the tree of evaluation.json

import numpy as np
from PIL import Image

from diffmoe_scale.checkpoint.manifest import complete_checkpoints
from diffmoe_scale.config.load import load_config
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import FAILURES, NOTES
from diffmoe_scale.files import replace_file
from diffmoe_scale.report.page import Markup, bar, element, facts, figure, fold, join, missing, page, table
from diffmoe_scale.report.plots import plot_capacity, plot_load_by_layer, plot_load_by_time, plot_training
from diffmoe_scale.telemetry.metrics import read_metrics

logger = logging.getLogger(__name__)

MAX_GRIDS = 8
MAX_IMAGE_BYTES = 1_500_000
MAX_IMAGE_WIDTH = 2000
MAX_LOG_LINES = 30
RECENT_RECORDS = 20

Record = Mapping[str, Any]


def write_report(run_directory: Path) -> Path:
    """Write report.html into a run directory and return its path; parts that are missing are named with the
    command that makes them.

    Raises: ValueError if the directory does not exist.
    """
    directory = RunDirectory(run_directory)
    if not run_directory.is_dir():
        raise ValueError(
            f"{run_directory} is no directory; expected a run directory, as given by run.directory in training"
        )
    records = read_metrics(directory.metrics)
    evaluation = _read_evaluation(directory.evaluation)
    config = _read_config(directory.config)
    name = run_directory.resolve().name
    sections = [
        element("h1", name),
        element("p", str(run_directory.resolve()), kind="note"),
        _status(records, config, directory),
        _settings(config, directory),
        _training(records, directory),
        _samples(directory),
        _scores(evaluation, records, directory),
        _experts(evaluation, records, config, directory),
        _troubles(records, config, directory),
        element("footer", f"Written {time.strftime('%Y-%m-%d %H:%M')} by diffmoe_scale."),
    ]
    replace_file(directory.report, page(name, join(sections)).encode())
    return directory.report


def format_scores(evaluation: Mapping[str, Any]) -> str:
    """The scores of an evaluation as a table for the terminal, with chance beside each and the average
    inference capacity below."""
    rows = _score_rows(evaluation["scores"])
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'suite':<{width}}  score  +/-    shuffled  prompts"]
    for name, score, error, shuffled, prompts in rows:
        lines.append(f"{name:<{width}}  {score:5.2f}  {error:4.2f}  {shuffled:10.2f}  {prompts:7d}")
    lines.append(
        f"average inference capacity {evaluation['capacity']['average']:.3f} (1 = the cost of the dense network)"
    )
    return "\n".join(lines)


def _score_rows(scores: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float, float, float, int]]:
    """(suite, score, its standard error, score against shuffled captions, prompts), the mean over suites
    last."""
    rows = []
    for name, entry in scores.items():
        score, prompts = float(entry["score"]), int(entry["prompts"])
        rows.append(
            (
                name.replace("_", " "),
                score,
                math.sqrt(max(0.0, score * (1 - score)) / max(1, prompts)),
                float(entry["shuffled"]),
                prompts,
            )
        )
    error_of_mean = math.sqrt(sum(row[2] ** 2 for row in rows)) / len(rows)
    means = (
        statistics.fmean(row[1] for row in rows),
        error_of_mean,
        statistics.fmean(row[3] for row in rows),
    )
    return [*rows, ("mean", *means, sum(row[4] for row in rows))]


def _read_evaluation(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        return evaluation if evaluation["scores"] and "load_TLE" in evaluation["capacity"] else None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%r) and is left out of the report", path, error)
        return None


def _read_config(path: Path) -> Config | None:
    try:
        return load_config(path)
    except ValueError as error:
        logger.warning("the report has no summary of the settings: %s", error)
        return None


def _status(records: Sequence[Record], config: Config | None, directory: RunDirectory) -> Markup:
    if not records:
        return missing("Nothing has been trained yet. To train:", _train_command(directory))
    last = records[-1]
    target = config.run.steps if config else last["step"]
    speeds = [
        record["throughput/images_per_s"]
        for record in records[-RECENT_RECORDS:]
        if "throughput/images_per_s" in record
    ]
    seconds, waited = _training_seconds(records)
    checkpoints = [path.name for path in complete_checkpoints(directory.checkpoints)]
    share = f"{100 * waited / seconds:.0f} % waiting for data" if seconds else ""
    entries = [
        ("Steps", f"{last['step']:,}", "complete" if last["step"] >= target else f"of {target:,}"),
        ("Images seen", f"{last['samples']:,}", ""),
        ("Training time", _duration(seconds), share),
        (
            "Images a second",
            f"{statistics.median(speeds):,.1f}" if speeds else "not logged",
            "median of the last lines" if speeds else "",
        ),
        *_last_value(records, "loss/diffusion", "Training loss"),
        *_last_value(records, "loss/validation", "Validation loss"),
        *_last_value(records, "memory/peak_gib", "Peak memory, GiB"),
        (
            "Last line",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(last["time"])),
            f"newest checkpoint: {checkpoints[-1] if checkpoints else 'none'}",
        ),
    ]
    return facts(entries)


def _last_value(records: Sequence[Record], name: str, title: str) -> list[tuple[str, str, str]]:
    known = [record for record in records if name in record]
    return [(title, f"{known[-1][name]:.4g}", f"at step {known[-1]['step']:,}")] if known else []


def _training_seconds(records: Sequence[Record]) -> tuple[float, float]:
    """Seconds spent in steps, pauses between a stop and its resume left out; and how many of them waiting for
    data."""
    seconds = waited = 0.0
    previous_step = 0
    for record in records:
        steps = record["step"] - previous_step
        seconds += steps * record.get("time/step_s", 0.0)
        waited += steps * record.get("time/data_s", 0.0)
        previous_step = record["step"]
    return seconds, waited


def _settings(config: Config | None, directory: RunDirectory) -> Markup:
    title = element("h2", "Settings")
    if not directory.config.is_file():
        return join(
            [
                title,
                missing(
                    "The run directory has no config.yaml; training writes it:", _train_command(directory)
                ),
            ]
        )
    text = directory.config.read_text(encoding="utf-8", errors="replace")
    if config is None:
        return join(
            [
                title,
                element("p", "config.yaml does not fit this version of the package.", kind="missing"),
                fold("config.yaml", text),
            ]
        )
    model, moe, optimizer, sampling = config.model, config.moe, config.optimizer, config.sampling
    experts = "none, a dense model"
    if moe.num_experts:
        experts = f"{moe.num_experts} in every {_ordinal(moe.every)}block, router {moe.router}, "
        experts += f"capacity {moe.capacity:g}, pool {moe.pool}, backend {moe.backend}"
    images = f"{model.image_size} x {model.image_size} pixels"
    if config.buckets.enabled:
        images = f"{len(config.buckets.aspects)} aspect ratios of at most {model.image_size**2} pixels"
    batch = f"{config.run.global_batch} samples a step in micro-batches of {config.run.micro_batch}"
    rows = [
        (
            "Model",
            f"{model.depth} blocks of width {model.width}, {model.heads} heads, patch {model.patch_size}, {model.conditioning}-conditional",
        ),
        ("Images", f"{images}, autoencoder {config.autoencoder.kind}"),
        ("Experts", experts),
        (
            "Objective",
            f"{config.diffusion.kind}, prediction {config.diffusion.prediction}, time {config.diffusion.time_sampling}",
        ),
        (
            "Optimizer",
            f"AdamW, peak rate {optimizer.learning_rate:g}, {batch}, weight average {optimizer.ema_decay:g}",
        ),
        (
            "Layout",
            f"ZeRO {config.parallel.zero_stage}, expert parallel {config.parallel.expert_parallel}, {model.precision}",
        ),
        (
            "Sampling",
            f"{sampling.steps} steps, guidance {sampling.guidance:g}, selection {sampling.selection}",
        ),
        ("Seed", str(config.run.seed)),
    ]
    return join([title, table(rows), fold("All settings (config.yaml)", text)])


def _training(records: Sequence[Record], directory: RunDirectory) -> Markup:
    title = element("h2", "Training")
    if not records:
        return join([title, missing("No metrics.jsonl yet. Training writes it:", _train_command(directory))])
    caption = "By optimizer step: values as logged (faint) and their running mean. Single spikes may leave the frame."
    return join([title, figure(plot_training(records).encode(), kind="svg", caption=caption)])


def _samples(directory: RunDirectory) -> Markup:
    title = element("h2", "Samples")
    files = [path for path in _newest_first(directory.samples) if not path.name.startswith("evaluation-")]
    if not files:
        return join(
            [
                title,
                missing(
                    "No samples yet. To draw some:",
                    f'{_module_command("sample", directory)} --prompt "a red circle"',
                ),
            ]
        )
    older = len(files) - MAX_GRIDS
    note = (
        [element("p", f"{older} older grids are in {directory.samples}.", kind="note")] if older > 0 else []
    )
    return join([title, *(_picture(path) for path in files[:MAX_GRIDS]), *note])


def _scores(
    evaluation: Mapping[str, Any] | None, records: Sequence[Record], directory: RunDirectory
) -> Markup:
    title = element("h2", "Scores")
    if evaluation is None:
        return join(
            [title, missing("No evaluation yet. To score the model:", _module_command("evaluate", directory))]
        )
    rows = [
        (
            name,
            f"{score:.2f} \N{PLUS-MINUS SIGN} {error:.2f}",
            f"{shuffled:.2f}",
            prompts,
            bar(score, shuffled),
        )
        for name, score, error, shuffled, prompts in _score_rows(evaluation["scores"])
    ]
    explanation = (
        "Share of pictures in which a strict checker finds everything the caption asks for, with its standard error. "
        "Chance is the same pictures judged by shuffled captions (the orange line): only what lies above it comes from the caption."
    )
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.get("sampling", {}).items())
    origin = f"Step {evaluation['step']:,} ({evaluation['checkpoint']}); sampling: {settings}."
    is_old = bool(records) and records[-1]["step"] > evaluation["step"]
    note = (
        [
            missing(
                f"Training has gone on to step {records[-1]['step']:,} since. To score it again:",
                _module_command("evaluate", directory),
            )
        ]
        if is_old
        else []
    )
    pictures = [
        _picture(path) for path in _newest_first(directory.samples) if path.name.startswith("evaluation-")
    ]
    header = ["suite", "score", "chance", "prompts", ""]
    return join(
        [
            title,
            element("p", explanation),
            table(rows, header=header, numbers=(1, 2, 3), has_total=True),
            element("p", origin, kind="note"),
            *note,
            *pictures,
        ]
    )


def _experts(
    evaluation: Mapping[str, Any] | None,
    records: Sequence[Record],
    config: Config | None,
    directory: RunDirectory,
) -> Markup:
    title = element("h2", "Experts")
    if config is not None and config.moe.num_experts == 0:
        return join([title, element("p", "A dense model: it has no experts.")])
    if evaluation is None:
        return join(
            [
                title,
                missing(
                    "No evaluation yet. It measures the experts' load:",
                    _module_command("evaluate", directory),
                ),
                _training_load(records),
            ]
        )
    capacity = evaluation["capacity"]
    load_TLE, layers, times = (
        np.array(capacity["load_TLE"], dtype=float),
        capacity["layers"],
        capacity["times"],
    )
    if load_TLE.ndim != 3 or load_TLE.size == 0 or not np.isfinite(load_TLE).all():
        return join([title, element("p", "The evaluation holds no load of experts.")])
    explanation = (
        f"Average inference capacity {capacity['average']:.3f}: the experts that a token gets on average over sampling, layers and prompts; "
        "1 is the cost of the dense network. Load is the share of the tokens that an expert takes, times the number of experts."
    )
    return join(
        [
            title,
            element("p", explanation),
            figure(
                plot_capacity(load_TLE, layers, times).encode(),
                kind="svg",
                caption="Capacity over the sampling steps: all layers (bold) and each layer.",
            ),
            figure(
                plot_load_by_layer(load_TLE.mean(0), layers).encode(),
                kind="svg",
                caption="Load of each expert by block, averaged over sampling steps.",
            ),
            figure(
                plot_load_by_time(load_TLE, layers, times).encode(),
                kind="svg",
                caption="Load of each expert over the sampling steps, from noise to data.",
            ),
        ]
    )


def _training_load(records: Sequence[Record]) -> Markup:
    """The experts' load at the last logged step of training, which stands in for that of sampling."""
    known = [record for record in records if any(name.startswith("moe/load/") for name in record)]
    if not known:
        return Markup("")
    load_by_layer = {
        int(name.rpartition("/")[2]): value
        for name, value in known[-1].items()
        if name.startswith("moe/load/")
    }
    layers = sorted(load_by_layer)
    svg = plot_load_by_layer(np.array([load_by_layer[layer] for layer in layers], dtype=float), layers)
    return figure(
        svg.encode(),
        kind="svg",
        caption=f"Load of each expert by block in training, at step {known[-1]['step']:,}.",
    )


def _troubles(records: Sequence[Record], config: Config | None, directory: RunDirectory) -> Markup:
    """What was wrong with samples, by kind, and the last warnings of the log."""
    num_bad = sum(record.get("data/bad_samples", 0) for record in records)
    seen = records[-1]["samples"] if records else 0
    limit = f"; the run would stop above {100 * config.data.max_bad_fraction:g} %" if config else ""
    parts = [element("h2", "Bad samples and warnings")]
    if seen:
        parts.append(
            element(
                "p",
                f"{num_bad:,.0f} of {seen:,} samples could not be used ({100 * num_bad / seen:.2g} %){limit}.",
            )
        )
    kinds = _kinds_of_trouble(records)
    if kinds:
        parts.append(table(kinds, header=["kind", "", "count"], numbers=(2,)))
    lines = (
        directory.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if directory.log.is_file()
        else []
    )
    warnings = [line for line in lines if line.split(" ", 3)[2:3] in (["WARNING"], ["ERROR"], ["CRITICAL"])]
    if warnings:
        parts.append(
            fold(
                f"The last {min(len(warnings), MAX_LOG_LINES)} of {len(warnings)} warnings and errors in log.txt",
                "\n".join(warnings[-MAX_LOG_LINES:]),
            )
        )
    else:
        parts.append(
            element(
                "p",
                "No warnings in log.txt." if directory.log.is_file() else "There is no log.txt.",
                kind="note",
            )
        )
    return join(parts)


def _kinds_of_trouble(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """Kind, its meaning and its count: samples of weight 0, what was dealt with, and what indexing lost."""
    rows = []
    for prefix, meanings, effect in (
        ("data/bad/", FAILURES, "weight 0"),
        ("data/note/", NOTES, "dealt with"),
    ):
        for kind, meaning in meanings.items():
            count = sum(record.get(prefix + kind, 0) for record in records)
            rows += [(kind, f"{meaning} ({effect})", f"{count:,.0f}")] if count else []
    # Every start finds the same losses again.
    lost = {
        name: value for record in records for name, value in record.items() if name.startswith("data/lost/")
    }
    return rows + [
        (name.removeprefix("data/lost/"), "found in shards when they were indexed", f"{count:,.0f}")
        for name, count in lost.items()
    ]


def _picture(path: Path) -> Markup:
    """A PNG as it is, or smaller as JPEG if it is a large file."""
    caption = path.name
    try:
        data, kind = path.read_bytes(), "png"
        if len(data) > MAX_IMAGE_BYTES:
            with Image.open(path) as image:
                smaller = image.convert("RGB")
            smaller.thumbnail((MAX_IMAGE_WIDTH, 10 * MAX_IMAGE_WIDTH), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            smaller.save(buffer, format="JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    except OSError as error:
        return element("p", f"{caption} cannot be read: {error}", kind="missing")
    return figure(data, kind=kind, caption=caption)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"), key=lambda path: (path.stat().st_mtime, path.name), reverse=True)


def _module_command(module: str, directory: RunDirectory) -> str:
    return f"python -m diffmoe_scale.{module} --checkpoint {shlex.quote(str(directory.path))}"


def _train_command(directory: RunDirectory) -> str:
    return f"deepspeed launch/pretrain_t2i.sh --config CONFIG.yaml run.directory={shlex.quote(str(directory.path))}"


def _ordinal(every: int) -> str:
    return {1: "", 2: "second ", 3: "third "}.get(every, f"{every}th ")


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {second:02d} s"
