import re
from pathlib import Path

import pytest

from diffmoe_scale.words import counted, short_reason

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("number", "noun", "spec", "text"),
    [
        (0, "shard", "", "0 shards"),
        (1, "shard", "", "1 shard"),
        (1.0, "step", ".0f", "1 step"),
        (2, "entry", "", "2 entries"),
        (1, "entry", "", "1 entry"),
        (2, "batch", "", "2 batches"),
        (2, "class", "", "2 classes"),
        (2, "dash", "", "2 dashes"),
        (2, "box", "", "2 boxes"),
        (2, "data set", "", "2 data sets"),
        (12000, "sample", ",", "12,000 samples"),
        (2, "day", "", "2 days"),
    ],
)
def test_one_is_in_the_singular(number: float, noun: str, spec: str, text: str) -> None:
    assert counted(number, noun, spec) == text


def test_no_message_counts_things_that_may_be_one_in_the_plural() -> None:
    """Of words that are counted often. ALLOWED are not for users."""
    words = "ranks|shards|samples|steps|checkpoints|rollbacks|experts|tensors|files|problems|images|processes"
    # Neither constants nor fractions are 1.
    number = r"\{(?![A-Z_]+\})[^{}]*(?<!\.\df)\}|%d"
    pattern = re.compile(rf"(?<!of )(?:{number}) (?:{words})\b")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for folder in ("diffmoe_scale", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if not line.strip().startswith(("assert", "#"))
        for match in pattern.finditer(line)
    ]
    assert not [entry for entry in found if entry not in ALLOWED], found


ALLOWED = {
    "diffmoe_scale/telemetry/picture_grid.py: {len(captions)} images",
    "diffmoe_scale/train/run.py: {bad} steps",
}
"""In an assert; more than 1."""


def test_a_reason_is_one_short_line():
    assert short_reason(ValueError("size\n\tmismatch")) == "size mismatch"
    long = short_reason(RuntimeError("Missing key(s):\n" + '"conv.weight", ' * 500))
    assert len(long) == 300 and long.startswith("Missing key(s): ") and long.endswith(" ...")
