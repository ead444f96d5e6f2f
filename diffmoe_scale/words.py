"""Counts as they are read (1 shard, 2 shards), and errors of other packages as one short line."""

LONGEST_REASON = 300


def short_reason(error: Exception) -> str:
    """The error's text as one line of at most 300 characters: torch names every tensor that does not fit."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 4]} ..."


def counted(number: float, noun: str, spec: str = "") -> str:
    """A number with its noun, plural unless it is 1. `spec` is the number's format, such as `,`."""
    return f"{number:{spec}} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x")) else f"{noun}s"
