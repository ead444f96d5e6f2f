"""Quality and cost of a model at several capacities, one point after another; what is there is not measured
again."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation.captions import check_captions
from diffmoe_scale.evaluation.metrics.scorer import Metrics, load_metrics
from diffmoe_scale.evaluation.sweep_prompts import Group, calibrated_for_scenes, make_groups
from diffmoe_scale.evaluation.sweep_results import Point, Sweep, make_profile, read_sweep, write_sweep
from diffmoe_scale.sampling.batch import generate_batches, latent_shape, number_requests
from diffmoe_scale.sampling.calibration import Kind
from diffmoe_scale.sampling.call_capacity import CapacityProfile
from diffmoe_scale.sampling.cost import measure_cost
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.loads import LoadByTime
from diffmoe_scale.sampling.thresholds import (
    check_calibration,
    checkpoint_fingerprint,
    find_selection,
    fingerprint_of,
    measured_settings,
)
from diffmoe_scale.scenes.suites import score_images
from diffmoe_scale.telemetry.picture_grid import to_pixels
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A point: a capacity and the calibration of its thresholds; capacity 0 is the dynamic threshold."""

    capacity: float
    calibration: Kind = "gamma"

    def __str__(self) -> str:
        return "as trained" if self.capacity == 0 else f"{self.calibration} {self.capacity:g}"

    def sampling(self, base: SamplingConfig) -> SamplingConfig:
        if self.capacity == 0:
            return replace(base, selection="threshold", capacity=0.0)
        return replace(base, selection="threshold", capacity=self.capacity, calibration=self.calibration)


class OpenSweep:
    """A sweep and its file, which is written after each point."""

    def __init__(
        self, pipeline: Pipeline, groups: Sequence[Group], *, seed: int, metrics: Metrics | None = None
    ) -> None:
        self.pipeline, self.groups, self.seed, self.metrics = pipeline, groups, seed, metrics
        made_of = {
            "checkpoint": checkpoint_fingerprint(pipeline.checkpoint),
            "settings": measured_settings(pipeline.config.sampling),
            "calibration_images": pipeline.config.sampling.calibration_images,
            "calibration_prompts": pipeline.config.sampling.calibration_prompts,
            "prompts": {group.name: len(group.prompts) for group in groups},
            "seed": seed,
            "metrics": None if metrics is None else asdict(metrics.config),
        }
        # Another way of measuring has a file of its own: no sweep replaces another.
        name = f"{pipeline.checkpoint.stem}-{pipeline.weights}-{fingerprint_of(made_of)[:8]}.json"
        self.path = pipeline.directory.sweeps / name
        self.found = Sweep(
            checkpoint=str(pipeline.checkpoint),
            step=pipeline.step,
            weights=pipeline.weights,
            made_of=made_of,
            sampling=asdict(pipeline.config.sampling),
            points=[],
        )
        if self.path.is_file():
            self.found = read_sweep(self.path)
            logger.info("%s holds %s already", self.path, counted(len(self.found.points), "point"))

    def measure(self, asked: Sequence[Asked]) -> None:
        """A point for each of `asked` that is not there yet."""
        for number, one in enumerate(asked, start=1):
            if find_point(self.found, one) is not None:
                continue
            logger.info("point %d of %d: %s", number, len(asked), one)
            try:
                point = _measure(self.pipeline, one, self.groups, seed=self.seed, metrics=self.metrics)
            except RunError as error:
                # A capacity that this model cannot have must not cost the others.
                logger.warning("no point %s: %s", one, error)
                continue
            points = sorted([*self.found.points, point], key=lambda point: point.capacity)
            self.keep(replace(self.found, points=points))

    def keep(self, found: Sweep) -> None:
        self.found = found
        write_sweep(self.path, found)


def open_sweep(
    pipeline: Pipeline, asked: Sequence[Asked], *, count: int, others: int, seed: int
) -> OpenSweep:
    """The sweep of a model with `count` prompts a suite (`others` without suites, and for `metrics.names`),
    as far as its file has it.

    Raises: ValueError for a model or a capacity that has no calibration, and as `load_metrics`.
    """
    if not pipeline.config.moe.has_thresholds:
        raise ValueError(
            f"{pipeline.directory.path} is a model without capacity predictors (moe.num_experts "
            f"{pipeline.config.moe.num_experts}, moe.router {pipeline.config.moe.router!r}): its capacity is "
            "that of training"
        )
    has_scenes = _knows_scenes(pipeline)
    if has_scenes and not pipeline.config.sampling.calibration_prompts:
        pipeline = calibrated_for_scenes(pipeline)
    for one in asked:
        sampling = one.sampling(pipeline.config.sampling)
        check_calibration(pipeline.config, sampling, checkpoint=pipeline.checkpoint, weights=pipeline.weights)
    metrics = None
    if pipeline.config.metrics.names:
        metrics = load_metrics(pipeline.config.metrics, pipeline.networks.device)
    groups = make_groups(
        pipeline,
        has_scenes=has_scenes,
        has_metrics=metrics is not None,
        count=count,
        others=others,
        seed=seed,
    )
    return OpenSweep(pipeline, groups, seed=seed, metrics=metrics)


def _knows_scenes(pipeline: Pipeline) -> bool:
    """Whether pictures of the suites of coloured shapes say something of the model."""
    if pipeline.config.model.conditioning != "text":
        return False
    _, height, width = latent_shape(pipeline.networks, pipeline.config.sampling)
    try:
        check_captions(pipeline.config, pipeline.directory.tokenizer)
    except ValueError as error:
        logger.info("without scores: %s", error)
        return False
    return height == width


def find_point(sweep: Sweep, one: Asked) -> Point | None:
    for point in sweep.points:
        if point.asked_for == one.capacity and point.calibration == one.calibration:
            return point
    return None


def _measure(
    pipeline: Pipeline, one: Asked, groups: Sequence[Group], *, seed: int, metrics: Metrics | None
) -> Point:
    scorer = None if metrics is None else metrics.start()
    sampling = one.sampling(pipeline.config.sampling)
    selection = find_selection(pipeline, sampling)
    loads, profile, calls, scores = LoadByTime(), CapacityProfile(), 0.0, {}
    count = sum(len(group.prompts) for group in groups)
    for group in groups:
        passed: list[bool] = []
        drawn = 0
        for batch in generate_batches(
            pipeline.networks,
            number_requests(group.prompts, seed=seed),
            sampling,
            selection=selection,
            title=f"{one.capacity:g} {group.name}",
        ):
            prompts = [request.prompt for request in batch.requests]
            kinds = [group.kind_of(prompt) for prompt in prompts]
            profile.add(batch.capacities, kinds=kinds, prompts=[str(prompt) for prompt in prompts])
            loads.merge(batch.loads)
            calls += batch.calls * len(prompts)
            if group.scenes:
                passed += score_images(batch.images_BCHW, group.scenes[drawn : drawn + len(prompts)])
            elif scorer is not None:
                captions = [str(prompt) for prompt in prompts]
                places = range(drawn, drawn + len(prompts))
                scorer.update(to_pixels(batch.images_BCHW), places, captions)
            drawn += len(prompts)
        if group.scenes:
            scores[group.name] = sum(passed) / len(passed)
    cost = measure_cost(pipeline, sampling, loads, calls=calls / count, num_pictures=count)
    return Point(
        asked_for=one.capacity,
        calibration=one.calibration,
        **asdict(cost),
        pictures=count,
        score=statistics.fmean(scores.values()) if scores else None,
        error=_error_of_mean(scores, groups) if scores else None,
        scores=scores,
        metrics={value.name: value.value for value in scorer.values()} if scorer is not None else {},
        profile=make_profile(
            profile, [layer.layer_index for layer in pipeline.networks.denoiser.moe_layers()]
        ),
    )


def _error_of_mean(scores: Mapping[str, float], groups: Sequence[Group]) -> float:
    """Standard error of the mean over suites."""
    counts = {group.name: len(group.prompts) for group in groups}
    return math.sqrt(sum(score * (1 - score) / counts[name] for name, score in scores.items())) / len(scores)
