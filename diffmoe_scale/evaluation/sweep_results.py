"""What a sweep of capacities found: a file in RUN/sweeps that is complete after each point."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # JSON trees

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.sampling.calibration import Kind
from diffmoe_scale.sampling.call_capacity import CapacityProfile, TimeCurve

MAX_KINDS_WITH_CURVES = 24
NUM_EXTREMES = 8


@dataclass(frozen=True, kw_only=True)
class KindCapacity:
    """Of one kind of prompt, or one class: the mean over its pictures, and over their calls' times (none
    where there are too many kinds to show)."""

    kind: str
    capacity: float
    error: float
    pictures: int
    times: list[float] = field(default_factory=list)
    capacity_T: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where experts worked: by half of guidance over time and layer, by kind of prompt, and for which
    prompts most and least."""

    layers: list[int]
    halves: dict[str, TimeCurve]
    kinds: list[KindCapacity]
    most: list[tuple[str, float]]
    least: list[tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One capacity: what was asked for (0: the dynamic threshold as trained), and what was measured."""

    asked_for: float
    calibration: Kind
    capacity: float
    calls: float
    flops: float
    """Of the network, a picture."""
    pictures: int
    score: float | None = None
    """Share of the pictures that show what was asked, the mean over suites; None without suites."""
    error: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Of pictures of validation captions or labels, such as fid; by the names of `metrics.names`."""
    profile: Profile
    ms: dict[str, float] = field(default_factory=dict)
    """Wall time of a whole picture: q1, median, q3; empty until it was measured."""

    @property
    def name(self) -> str:
        return "as trained" if self.asked_for == 0 else f"{self.calibration} {self.asked_for:g}"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Points by rising capacity, and what they were measured of."""

    checkpoint: str
    step: int
    weights: str
    made_of: dict[str, Any]
    sampling: dict[str, Any]
    points: list[Point]
    timed_batch: int = 0
    """Pictures that were drawn at once for the wall time."""
    device: str = ""


def make_profile(found: CapacityProfile, layers: Sequence[int]) -> Profile:
    curves = found.kinds
    kinds = []
    for kind, curve in curves.items():
        capacity, error, pictures = found.mean_of_kind(kind)
        shown = curve if len(curves) <= MAX_KINDS_WITH_CURVES else TimeCurve([], [])
        kinds.append(
            KindCapacity(
                kind=kind,
                capacity=capacity,
                error=error,
                pictures=pictures,
                times=shown.times,
                capacity_T=[capacity for (capacity,) in shown.capacity_TL],
            )
        )
    ordered = sorted(found.pictures, key=lambda picture: picture.capacity)
    extremes = [(picture.prompt, picture.capacity) for picture in ordered]
    return Profile(
        layers=list(layers),
        halves=found.halves,
        kinds=kinds,
        most=extremes[::-1][:NUM_EXTREMES],
        least=extremes[:NUM_EXTREMES],
    )


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"kind": "capacity sweep"} | asdict(sweep), indent=1).encode())


def read_sweep(path: Path) -> Sweep:
    """Raises: ValueError if the file holds no sweep."""
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        if tree.pop("kind") != "capacity sweep":
            raise ValueError("of another kind")
        points = [_point(entry) for entry in tree.pop("points")]
        return Sweep(points=points, **tree)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise ValueError(f"{path} holds no sweep of capacities ({error!r:.200}); remove it") from error


def _point(tree: Mapping[str, Any]) -> Point:
    profile = tree["profile"]
    halves = {name: TimeCurve(**curve) for name, curve in profile["halves"].items()}
    kinds = [KindCapacity(**kind) for kind in profile["kinds"]]
    extremes = {name: [(str(prompt), float(c)) for prompt, c in profile[name]] for name in ("most", "least")}
    point = Point(
        **{**tree, "profile": Profile(layers=profile["layers"], halves=halves, kinds=kinds, **extremes)}
    )
    numbers = (point.asked_for, point.capacity, point.calls, point.flops, *point.ms.values())
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError("numbers that are not finite")
    return point
