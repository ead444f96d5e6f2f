"""Metrics of a stream of pictures: `load_metrics`, then for each set of samples `start`, `update`, `merge`,
`values`.

B pictures of a batch; H W C height, width and colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.metrics.backbone import Backbone, exact_float32
from diffmoe_scale.evaluation.metrics.backbones import check_settings, load_backbones
from diffmoe_scale.evaluation.metrics.compute import compute_values
from diffmoe_scale.evaluation.metrics.measures import BackboneName, Measure, Need, parse_measures
from diffmoe_scale.evaluation.metrics.pictures import PictureSource, Size
from diffmoe_scale.evaluation.metrics.reference import Reference, load_reference, reference_size
from diffmoe_scale.evaluation.metrics.result import MetricValue
from diffmoe_scale.evaluation.metrics.statistics import PictureStatistics
from diffmoe_scale.files import find_obstacle


@dataclass(frozen=True)
class Metrics:
    """Networks and reference of the metrics that were asked for; serves any number of sample sets."""

    config: MetricsConfig
    measures: list[Measure]
    backbones: dict[BackboneName, Backbone]
    references: dict[BackboneName, Reference]
    reference_size: Size | None

    @property
    def has_captions(self) -> bool:
        """Whether `update` needs the captions."""
        return any(measure.need == "captions" for measure in self.measures)

    def start(self) -> "Scorer":
        return Scorer(self)

    def score(self, source: PictureSource) -> list[MetricValue]:
        """Metrics of pictures on disk. Raises: ValueError, RunError or OSError for what is not read."""
        scorer = self.start()
        with tqdm(total=source.count, desc=source.path.name, unit="image", disable=None) as bar:
            for part in source.batches(self.config.batch):
                scorer.update(part.pictures_BHWC, part.places, part.captions)
                bar.update(len(part.places))
        return scorer.values()


def check_metrics(config: MetricsConfig) -> tuple[list[Measure], Size | None]:
    """What is measured, and the size of the reference's pictures. Raises: ValueError for wrong settings."""
    measures = parse_measures(config.names)
    check_settings(config, measures)
    size = reference_size(Path(config.reference)) if config.reference else None
    if config.cache and (obstacle := find_obstacle(Path(config.cache), is_folder=True)):
        raise ValueError(f"metrics.cache: {obstacle}; expected a folder that can be written to")
    return measures, size


def load_metrics(
    config: MetricsConfig, device: torch.device, *, group: dist.ProcessGroup | None = None
) -> Metrics:
    """Load the networks, and the reference (from the cache, or computed by all ranks of a gloo group).
    Collective over the group.

    Raises: ValueError for wrong settings and files, RunError, OSError.
    """
    measures, size = check_metrics(config)
    backbones = load_backbones(config, measures, device)
    references = {}
    for name, backbone in backbones.items():
        if needs := _needs(measures, name, of_reference=True):
            references[name] = load_reference(
                Path(config.reference),
                backbone,
                needs,
                cache=Path(config.cache) if config.cache else None,
                batch=config.batch,
                group=group,
            )
    return Metrics(config, measures, backbones, references, size)


def _needs(measures: Sequence[Measure], backbone: BackboneName, *, of_reference: bool) -> list[Need]:
    return sorted(
        {
            measure.need
            for measure in measures
            if measure.backbone == backbone and (measure.has_reference or not of_reference)
        }
    )


def check_size(samples: Size, reference: Size | None, config: MetricsConfig) -> None:
    """Raises: ValueError for samples of another size than the reference pictures."""
    if reference is not None and samples != reference and not config.any_size:
        sizes = "{} x {} pixels, but {} {} x {}".format(*samples, config.reference, *reference)
        raise ValueError(
            f"the samples have {sizes}; give a reference of their size, or set metrics.any_size (--any-size)"
        )


class Scorer:
    """The metrics of one set of samples, which are seen once and not kept."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.is_first = True
        self.statistics = {
            name: PictureStatistics(
                _needs(metrics.measures, name, of_reference=False), backbone.network.widths
            )
            for name, backbone in metrics.backbones.items()
        }

    def update(
        self,
        pictures_BHWC: np.ndarray | Tensor,
        places: Sequence[int],
        captions: Sequence[str] | None = None,
    ) -> None:
        """Add uint8 pictures. `places` number the samples from 0, over all ranks; `captions` are needed for
        the CLIP score alone.

        Raises: ValueError for pictures of another kind or size, RunError for features that are not finite.
        """
        # A copy: torch warns of arrays that cannot be written to.
        pictures = torch.as_tensor(np.array(pictures_BHWC))
        self._check(pictures, places, captions)
        for name, backbone in self.metrics.backbones.items():
            found = self.statistics[name]
            wanted = captions if "captions" in found.needs else None
            found.update(backbone.features(pictures, wanted), torch.as_tensor(places, dtype=torch.int64))

    def _check(self, pictures: Tensor, places: Sequence[int], captions: Sequence[str] | None) -> None:
        shape = list(pictures.shape)
        if pictures.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] != len(places):
            raise ValueError(
                f"pictures are {pictures.dtype} {shape}; expected uint8 [{len(places)}, H, W, 3]"
            )
        if self.metrics.has_captions and (captions is None or len(captions) != len(places)):
            raise ValueError("clip_score compares pictures with their captions, and these have none")
        check_size((shape[1], shape[2]), self.metrics.reference_size, self.metrics.config)

    def merge(self, group: dist.ProcessGroup) -> None:
        """Bring the parts of all ranks together on the first rank of a gloo group. Collective."""
        self.is_first = group.rank() == 0
        for found in self.statistics.values():
            found.merge(group)

    def values(self) -> list[MetricValue]:
        """In the order in which they were asked for; after `merge` on the group's first rank alone.

        Raises: ValueError for fewer than 2 pictures, or one that came twice.
        """
        assert self.is_first, "the other ranks hold a part"
        metrics = self.metrics
        with exact_float32():
            return compute_values(
                metrics.measures, self.statistics, metrics.backbones, metrics.references, metrics.config
            )
