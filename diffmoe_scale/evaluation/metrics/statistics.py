"""What is collected of a set of pictures under one network, in one pass: all that its metrics need.

B pictures of a batch, F features.
"""

from collections.abc import Mapping, Sequence
from typing import Any  # objects travel pickled

import torch.distributed as dist
from torch import Tensor

from diffmoe_scale.config.check import RunError
from diffmoe_scale.evaluation.metrics.caption_score import CaptionScore
from diffmoe_scale.evaluation.metrics.inception_score import InceptionScore
from diffmoe_scale.evaluation.metrics.measures import Need
from diffmoe_scale.evaluation.metrics.moments import Moments
from diffmoe_scale.evaluation.metrics.rows import Places, Rows
from diffmoe_scale.words import counted

OUTPUTS: dict[Need, str] = {
    "moments": "pool",
    "spatial_moments": "spatial",
    "rows": "pool",
    "splits": "logits",
    "captions": "cosines",
}
"""Which output of a network each is made of."""


class PictureStatistics:
    """`moments`, `spatial_moments`, `rows`, `splits` and `captions`; those that are not needed stay empty.

    Pictures have places, numbers from 0: the order of files, whatever order or rank they come from.
    """

    def __init__(self, needs: Sequence[Need], widths: Mapping[str, int]) -> None:
        """`widths` are those of the network's outputs."""
        self.needs: list[Need] = sorted(needs)

        def width(need: Need) -> int:
            return widths[OUTPUTS[need]] if need in self.needs else 0

        self.moments = Moments(width("moments"))
        self.spatial_moments = Moments(width("spatial_moments"))
        self.rows = Rows(width("rows"))
        self.splits = InceptionScore()
        self.captions = CaptionScore()
        self.places = Places()

    @property
    def outputs(self) -> set[str]:
        return {OUTPUTS[need] for need in self.needs}

    @property
    def count(self) -> int:
        return len(self.places)

    def update(self, features: Mapping[str, Tensor], places_B: Tensor) -> None:
        """`features` by output, on any device. Raises: RunError for numbers that are not finite."""
        found = {name: features[name].detach().cpu() for name in self.outputs}
        for name, values in found.items():
            bad_B = ~values.reshape(len(values), -1).isfinite().all(1)
            if bad_B.any():
                place = int(places_B[bad_B][0])
                raise RunError(f"picture {place} has features ({name}) that are not finite numbers")
        self.places.add(places_B)
        for need in self.needs:
            values = found[OUTPUTS[need]]
            match need:
                case "moments":
                    self.moments.update(values)
                case "spatial_moments":
                    self.spatial_moments.update(values)
                case "rows":
                    self.rows.update(values, places_B)
                case "splits":
                    self.splits.update(values, places_B)
                case "captions":
                    self.captions.update(values)

    def merge(self, group: dist.ProcessGroup) -> None:
        """Add up over the ranks of a gloo group. Collective; the group's first rank then holds the whole."""
        everyone: list[Any] = [None] * group.size()
        dist.all_gather_object(everyone, self.places, group=group)
        self.places = Places()
        for places in everyone:
            self.places.add(places.tensor())
        for part in (self.moments, self.spatial_moments, self.rows, self.splits, self.captions):
            part.merge(group)

    def check_places(self, what: str) -> None:
        """Raises: ValueError if there are fewer than 2 pictures or one came twice."""
        if self.count < 2:
            raise ValueError(f"{what}: {counted(self.count, 'picture')}; metrics compare sets of at least 2")
        places_N = self.places.tensor().sort().values
        twice = places_N[1:][places_N[1:] == places_N[:-1]]
        if len(twice):
            raise ValueError(f"{what}: picture {int(twice[0])} came twice")
