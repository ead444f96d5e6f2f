"""The metrics by name: of which network's features, and what must be collected for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BackboneName = Literal["inception", "timm", "clip"]
BACKBONES: tuple[BackboneName, ...] = ("inception", "timm", "clip")
Need = Literal["moments", "spatial_moments", "rows", "splits", "captions"]
"""What is collected of a set of pictures: mean and covariance, the same of ADM's spatial features, all
features, the parts of the Inception Score, cosines with the captions."""


@dataclass(frozen=True)
class Statistic:
    """What a number is computed from, and whether the reference pictures are compared with."""

    need: Need
    has_reference: bool
    backbones: tuple[BackboneName, ...] = BACKBONES


STATISTICS = {
    "fd": Statistic("moments", True),
    "sfd": Statistic("spatial_moments", True, ("inception",)),
    "kid": Statistic("rows", True),
    "precision": Statistic("rows", True),
    "recall": Statistic("rows", True),
    "is": Statistic("splits", False, ("inception", "timm")),
    "cmmd": Statistic("rows", True, ("clip",)),
    "clip_score": Statistic("captions", False, ("clip",)),
}
SHORT = {
    "fid": "fd:inception",
    "sfid": "sfd:inception",
    "is": "is:inception",
    "precision": "precision:inception",
    "recall": "recall:inception",
    "kid": "kid:inception",
    "cmmd": "cmmd:clip",
    "clip_score": "clip_score:clip",
}
"""Names without a network: DiT's protocol, and metrics that are defined by CLIP."""


@dataclass(frozen=True)
class Measure:
    """A metric that was asked for, such as `fid` or `kid:timm`."""

    name: str
    statistic: str
    backbone: BackboneName

    @property
    def need(self) -> Need:
        return STATISTICS[self.statistic].need

    @property
    def has_reference(self) -> bool:
        return STATISTICS[self.statistic].has_reference


def parse_measures(names: Sequence[str]) -> list[Measure]:
    """Raises: ValueError for a name that is no metric, twice the same, or none."""
    if not names:
        raise ValueError(f"no metric is asked for; expected some of {_known()}")
    measures = [_parse(name) for name in names]
    for index, measure in enumerate(measures):
        same = [other.name for other in measures[:index] if _identity(other) == _identity(measure)]
        if same:
            raise ValueError(f"metric {measure.name!r} is asked for twice ({same[0]!r})")
    return measures


def _identity(measure: Measure) -> tuple[str, str]:
    return measure.statistic, measure.backbone


def _parse(name: str) -> Measure:
    statistic, _, wanted = SHORT.get(name, name).partition(":")
    for backbone in BACKBONES:
        if statistic in STATISTICS and backbone == wanted:
            if backbone not in (allowed := STATISTICS[statistic].backbones):
                raise ValueError(f"metric {name!r}: {statistic} is of {' or '.join(allowed)} alone")
            return Measure(name, statistic, backbone)
    raise ValueError(f"{name!r} is no metric; expected one of {_known()}")


def _known() -> str:
    return f"{', '.join(SHORT)}, or NAME:NETWORK as fd:timm, kid:timm, fd:clip (fd is FID of other features)"
