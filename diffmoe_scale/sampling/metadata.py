"""What a picture was made of, and whether two were made alike."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any  # JSON values

from diffmoe_scale import __version__
from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.sampling.batch import Request
from diffmoe_scale.sampling.loading import Pipeline
from diffmoe_scale.sampling.picture_files import Metadata
from diffmoe_scale.sampling.thresholds import describe_thresholds

COMPARED = ("prompt", "negative_prompt", "seed", "index")
COMPARED_OF_ALL = ("checkpoint", "step", "weights", "thresholds")
"""Of one picture, and of all pictures that are drawn together. The version is left out."""


def picture_metadata(pipeline: Pipeline, request: Request, selection: Selection | None = None) -> Metadata:
    """`selection` is that of a calibration, if there was one."""
    metadata: dict[str, str | int] = {
        "prompt": str(request.prompt),
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "index": request.index,
        "settings": json.dumps(asdict(pipeline.config.sampling)),
        "checkpoint": str(pipeline.checkpoint.absolute()),
        "step": pipeline.step,
        "weights": pipeline.weights,
        "version": f"diffmoe_scale {__version__}",
    }
    if selection is not None and pipeline.config.sampling.capacity != 0:
        metadata["thresholds"] = describe_thresholds(selection)
    return metadata


def is_seen(setting: str, settings: Mapping[str, Any]) -> bool:
    """Whether a picture depends on one of the settings of sampling. On the batch it does where experts take
    the top K of a batch."""
    return setting != "batch" or settings["selection"] == "static"


def find_difference(found: Metadata, wanted: Metadata, *, is_same_place: bool = True) -> str:
    """In what a picture was made otherwise than is wanted, such as `seed 3 instead of 4`; "" for nothing.

    Of another place than the wanted one (`is_same_place`) only what all pictures have in common counts.
    """
    if "settings" not in found or "prompt" not in found:
        return "no word of how it was made"
    names = (*COMPARED, *COMPARED_OF_ALL) if is_same_place else COMPARED_OF_ALL
    for name in names:
        if str(found.get(name, "")) != str(wanted.get(name, "")):
            return f"{name} {found.get(name, '')!r:.120} instead of {wanted.get(name, '')!r:.120}"
    before, now = _settings(found["settings"]), _settings(wanted["settings"])
    for name, value in now.items():
        if before.get(name) != value and is_seen(name, now):
            return f"sampling.{name} {before.get(name)!r:.80} instead of {value!r:.80}"
    return ""


def _settings(text: str | int) -> Mapping[str, Any]:
    """With the defaults of settings that an older version did not have."""
    try:
        found = parse_json(str(text))
    except ValueError:
        found = None
    return asdict(SamplingConfig()) | (found if isinstance(found, dict) else {"sampler": None})
