"""Transformers of diffusers from their folders."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any  # JSON trees

from torch import Tensor

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.convert.verify import Question

CONFIG = "config.json"


def diffusers_class(folder: Path) -> str:
    """The class that a folder's config.json names; "" without one. A pipeline's folder is that of its
    transformer."""
    return str(_read_config(folder).get("_class_name", ""))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        path = folder / "transformer" / CONFIG
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    return tree if isinstance(tree, dict) else {}


def open_diffusers(
    folder: Path, settings: Sequence[str]
) -> tuple[StoredWeights, Callable[[str, Question], Tensor], float]:
    raise ValueError(f"{folder}: {diffusers_class(folder)} is no model that is known here")
