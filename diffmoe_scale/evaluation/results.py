"""What an evaluation found: typed, and its JSON form in RUN/evaluation.json."""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # JSON trees

import numpy as np

from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json


@dataclass(frozen=True, kw_only=True)
class SuiteScore:
    """Share of the pictures that show what was asked, and the share by chance (captions shuffled)."""

    score: float
    shuffled: float
    prompts: int

    @property
    def error(self) -> float:
        """Standard error of `score`."""
        return math.sqrt(max(0.0, self.score * (1 - self.score)) / max(1, self.prompts))


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What the experts did: `load_TLE[call time, layer, expert]` is the share of tokens times experts.

    `times` are those at which the network was called, falling; `layers` the blocks that have experts.
    `average` is the average inference capacity (DiffMoE eq. 15), 1 for a dense model, whose load is empty.
    """

    average: float = 1.0
    times: list[float] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    load_TLE: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))

    @property
    def has_load(self) -> bool:
        return self.load_TLE.size > 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores by suite, the experts' work, and with which weights and settings they were measured."""

    checkpoint: str
    step: int
    prompts_per_suite: int
    sampling: dict[str, Any]
    scores: dict[str, SuiteScore]
    capacity: Capacity
    calls: float = 0.0
    """Calls of the network a picture; 0 in files of older versions."""
    flops: float = 0.0
    """Operations of the network a picture; 0 in files of older versions."""

    @property
    def mean(self) -> SuiteScore:
        """The mean over suites."""
        parts = list(self.scores.values())
        return SuiteScore(
            score=statistics.fmean(part.score for part in parts),
            shuffled=statistics.fmean(part.shuffled for part in parts),
            prompts=sum(part.prompts for part in parts),
        )

    @property
    def error_of_mean(self) -> float:
        return math.sqrt(sum(part.error**2 for part in self.scores.values())) / len(self.scores)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Raises: OSError."""
    load_TLE = evaluation.capacity.load_TLE
    tree = asdict(evaluation)
    tree["capacity"] |= {
        "by_time": load_TLE.mean(axis=(1, 2)).tolist() if load_TLE.size else [],
        "load_TLE": load_TLE.tolist(),
    }
    replace_file(path, json.dumps(tree, indent=1).encode())


def read_evaluation(path: Path) -> Evaluation | None:
    """The evaluation of a run; None without the file.

    Raises: ValueError if it is no evaluation, with what is wrong.
    """
    if not path.is_file():
        return None
    try:
        return _from_tree(parse_json(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
        raise ValueError(f"{path} is no evaluation ({error!r}); run evaluate again") from error


def _from_tree(tree: Any) -> Evaluation:
    if not isinstance(tree, dict) or not isinstance(tree["scores"], dict) or not tree["scores"]:
        raise ValueError("expected an object with the scores of at least one suite")
    sampling = tree.get("sampling", {})
    return Evaluation(
        checkpoint=str(tree["checkpoint"]),
        step=_count(tree["step"]),
        prompts_per_suite=_count(tree.get("prompts_per_suite", 0)),
        sampling=sampling if isinstance(sampling, dict) else {},
        scores={str(name): _score(entry) for name, entry in tree["scores"].items()},
        capacity=_capacity(tree["capacity"]),
        calls=_number(tree.get("calls", 0.0)),
        flops=_number(tree.get("flops", 0.0)),
    )


def _score(entry: Mapping[str, Any]) -> SuiteScore:
    score, chance = _number(entry["score"]), _number(entry["shuffled"])
    if not (0 <= score <= 1 and 0 <= chance <= 1):
        raise ValueError(f"a score of {score} against {chance}; expected shares between 0 and 1")
    return SuiteScore(score=score, shuffled=chance, prompts=_count(entry["prompts"]))


def _capacity(tree: Mapping[str, Any]) -> Capacity:
    load_TLE = np.array(tree["load_TLE"], dtype=float)
    if load_TLE.size == 0:
        return Capacity(average=_number(tree["average"]))
    times, layers = [_number(time) for time in tree["times"]], [_count(layer) for layer in tree["layers"]]
    if load_TLE.ndim != 3 or load_TLE.shape[:2] != (len(times), len(layers)) or load_TLE.shape[2] == 0:
        raise ValueError(
            f"load_TLE has the shape {load_TLE.shape} with {len(times)} times and {len(layers)} layers"
        )
    if not np.isfinite(load_TLE).all() or load_TLE.min() < 0:
        raise ValueError("load_TLE holds numbers that are not finite or below 0")
    return Capacity(average=_number(tree["average"]), times=times, layers=layers, load_TLE=load_TLE)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} where a finite number was expected")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.80} where a count was expected")
    return value
