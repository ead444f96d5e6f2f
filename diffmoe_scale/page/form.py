"""What the page asks for, as the browser sends it, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any  # JSON values

from diffmoe_scale.cli.arguments import WEIGHTS
from diffmoe_scale.sampling.batch import check_seed
from diffmoe_scale.unicode import clean_text

TEXTS = ("checkpoint", "weights", "prompt", "negative_prompt", "experts", "sampler")
NUMBERS = ("seed", "guidance", "steps", "capacity", "gamma")
LONGEST = 10_000
"""Letters of a text."""
CALIBRATIONS = ("gamma", "quantile")
EXPERTS = ("threshold", *CALIBRATIONS, "interval", "threshold_count", "static")
"""How experts choose: calibrated for a capacity by one threshold for all (`gamma`) or by one for each layer
and expert (`quantile`), else as `sampling.selection` says."""


@dataclass(frozen=True)
class Form:
    """A picture that was asked for. `settings` are those of sampling."""

    checkpoint: str
    weights: str
    prompt: str
    negative_prompt: str
    seed: int
    settings: Mapping[str, Any]


def read_form(sent: object) -> Form:
    """Raises: ValueError naming the entry that is wrong."""
    if not isinstance(sent, dict):
        raise ValueError(f"the page sent {sent!r:.80}; expected an object with {', '.join(TEXTS + NUMBERS)}")
    texts = {name: _text(sent, name) for name in TEXTS}
    numbers = {name: _number(sent, name) for name in NUMBERS}
    check_seed(numbers["seed"])
    if not texts["checkpoint"]:
        raise ValueError("checkpoint is empty; expected a run directory or one of its checkpoints/step_N")
    if texts["weights"] not in WEIGHTS:
        raise ValueError(f"weights are {texts['weights']!r:.80}; expected one of {', '.join(WEIGHTS)}")
    return Form(
        checkpoint=texts["checkpoint"],
        weights=texts["weights"],
        prompt=texts["prompt"],
        negative_prompt=texts["negative_prompt"],
        seed=int(numbers["seed"]),
        settings={
            "sampler": texts["sampler"],
            "steps": numbers["steps"],
            "guidance": numbers["guidance"],
            **_selection(texts["experts"], capacity=numbers["capacity"], gamma=numbers["gamma"]),
        },
    )


def _selection(experts: str, *, capacity: float, gamma: float) -> dict[str, Any]:
    """The settings of sampling for a choice of EXPERTS, "" where the model leaves none; a number that the
    choice does not use is left out."""
    match experts:
        case "":
            return {"capacity": 0.0}
        case "gamma" | "quantile":
            if capacity == 0:
                raise ValueError("capacity is 0; expected above 0")
            return {"selection": "threshold", "calibration": experts, "capacity": capacity}
        case "interval":
            return {"selection": "interval", "gamma": gamma, "capacity": 0.0}
        case "threshold" | "threshold_count" | "static":
            return {"selection": experts, "capacity": 0.0}
    raise ValueError(f"experts is {experts!r:.80}; expected one of {', '.join(EXPERTS)}")


def _text(sent: Mapping[str, Any], name: str) -> str:
    value = sent.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.80}; expected text")
    if len(value) > LONGEST:
        raise ValueError(f"{name} has {len(value)} letters; expected at most {LONGEST}")
    return clean_text(value)[0].strip()


def _number(sent: Mapping[str, Any], name: str) -> int | float:
    """A field that is empty, or holds no number, is sent as null."""
    value = sent.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {'empty' if value is None else repr(value)[:80]}; expected a number")
    return value
