"""JSON that someone else may have written."""

import json
from collections.abc import Callable
from typing import Any  # a JSON tree


def parse_json(
    text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], object] | None = None
) -> Any:
    """As `json.loads`. Raises: ValueError for what is no JSON, no UTF-8, or nested too deep, of which
    `json.loads` makes a RecursionError."""
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
