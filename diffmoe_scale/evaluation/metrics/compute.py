"""Values of metrics from what was collected."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.fidelity import NEIGHBOURS, precision_recall
from diffmoe_scale.evaluation.metrics.inception_score import SPLIT
from diffmoe_scale.evaluation.metrics.measures import BackboneName, Measure
from diffmoe_scale.evaluation.metrics.mmd import cmmd, kernel_distance
from diffmoe_scale.evaluation.metrics.moments import frechet_distance
from diffmoe_scale.evaluation.metrics.reference import Reference
from diffmoe_scale.evaluation.metrics.result import MetricValue
from diffmoe_scale.evaluation.metrics.statistics import PictureStatistics

logger = logging.getLogger(__name__)

Found = tuple[float, float | None, dict[str, float]]
"""Value, error, settings."""


def compute_values(
    measures: Sequence[Measure],
    statistics: Mapping[BackboneName, PictureStatistics],
    backbones: Mapping[BackboneName, Backbone],
    references: Mapping[BackboneName, Reference],
    config: MetricsConfig,
) -> list[MetricValue]:
    """In the order of `measures`. Raises: ValueError for fewer than 2 pictures, or one that came twice."""
    for found in statistics.values():
        found.check_places("the samples")
    shared: dict[BackboneName, tuple[float, float]] = {}
    values = []
    for measure in measures:
        name, samples = measure.backbone, statistics[measure.backbone]
        reference = references[name] if measure.has_reference else None
        device = backbones[name].device
        if measure.statistic in ("precision", "recall") and name not in shared:
            shared[name] = _precision_recall(samples, references[name], device)
        value, error, settings = _compute(measure, samples, reference, config, shared, device)
        values.append(
            MetricValue(
                name=measure.name,
                value=value,
                error=error,
                pictures=samples.count,
                backbone=backbones[name].name,
                backbone_fingerprint=backbones[name].fingerprint,
                resize=backbones[name].resize,
                reference=str(reference.path) if reference else "",
                reference_pictures=reference.counts[measure.need] if reference else 0,
                reference_fingerprint=reference.fingerprint if reference else "",
                settings=settings,
            )
        )
    return values


def _compute(
    measure: Measure,
    samples: PictureStatistics,
    reference: Reference | None,
    config: MetricsConfig,
    shared: Mapping[BackboneName, tuple[float, float]],
    device: torch.device,
) -> Found:
    match measure.statistic:
        case "fd" | "sfd":
            assert reference is not None
            moments = samples.moments if measure.statistic == "fd" else samples.spatial_moments
            width = len(moments.sum_F)
            if samples.count <= width:
                logger.warning(
                    "%s of %d pictures, not more than its %d features: biased upwards, comparable at equal "
                    "numbers alone",
                    measure.name,
                    samples.count,
                    width,
                )
            return frechet_distance(moments.gaussian(), reference.gaussians[measure.need]), None, {}
        case "kid":
            first_NF, second_MF = samples.rows.gather(), _rows(reference)
            size = min(config.kid_subset_size, len(first_NF), len(second_MF))
            mean, deviation = kernel_distance(first_NF, second_MF, subsets=config.kid_subsets, size=size)
            return mean, deviation, {"subsets": config.kid_subsets, "subset_size": size}
        case "precision":
            return shared[measure.backbone][0], None, {"neighbours": NEIGHBOURS}
        case "recall":
            return shared[measure.backbone][1], None, {"neighbours": NEIGHBOURS}
        case "is":
            return *samples.splits.score(), {"split": SPLIT}
        case "cmmd":
            first_NF, second_MF = samples.rows.gather().to(device), _rows(reference).to(device)
            return cmmd(first_NF, second_MF), None, {}
        case "clip_score":
            return *samples.captions.score(), {}
        case _:
            raise AssertionError(measure.statistic)


def _precision_recall(
    samples: PictureStatistics, reference: Reference, device: torch.device
) -> tuple[float, float]:
    first_NF, second_MF = samples.rows.gather().to(device), _rows(reference).to(device)
    fewest = min(len(first_NF), len(second_MF))
    if fewest <= NEIGHBOURS:
        raise ValueError(
            f"precision and recall look at the {NEIGHBOURS} nearest pictures of {fewest}; expected at least "
            f"{NEIGHBOURS + 1}, of the samples and of the reference"
        )
    return precision_recall(first_NF, second_MF)


def _rows(reference: Reference | None) -> Tensor:
    assert reference is not None and reference.rows_MF is not None
    return reference.rows_MF
