"""The panels of launch/grafana.json."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any  # JSON

FILE = Path(__file__).resolve().parents[1] / "launch" / "grafana.json"


def read_dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Title of a panel, and what it asks Prometheus."""
    for panel in read_dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def missing_gauges(gauges: set[str]) -> list[str]:
    """Panels with a name, or a pattern, that none of `gauges` has."""
    missing = []
    for title, expression in expressions():
        patterns = re.findall(r'__name__=~"([^"]+)"', expression) or re.findall(r"diffmoe_\w+", expression)
        assert patterns, (title, expression)
        missing += [
            f"{title}: {pattern}"
            for pattern in patterns
            if not any(re.fullmatch(pattern, gauge) for gauge in gauges)
        ]
    return missing
