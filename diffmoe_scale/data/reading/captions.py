"""Which captions a sample has: one rule for training and for the tools."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from diffmoe_scale.unicode import clean_text


def caption_texts(found: object) -> list[str]:
    """The captions in a "caption" field: its text, or the texts of its list; blank ones and what is no text
    are left out."""
    texts = found if isinstance(found, list) else [found]
    return [stripped for text in texts if isinstance(text, str) and (stripped := text.strip())]


def clean_captions(found: object, kinds: set[str]) -> list[str]:
    """The captions in a field as text that every tokenizer takes; `kinds` is filled with what was odd."""
    cleaned = [clean_text(text) for text in caption_texts(found)]
    kinds |= {kind for _, notes in cleaned for kind in notes}
    return [text for text, _ in cleaned if text]


def choose(weights: Sequence[float], draw: float) -> int:
    """The number of the weight that a draw in [0, 1) falls into."""
    ends = list(accumulate(weights))
    return min(bisect_right(ends, draw * ends[-1]), len(weights) - 1)
