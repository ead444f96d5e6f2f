"""Counts as they are read: 1 shard, 2 shards."""


def counted(number: float, noun: str, spec: str = "") -> str:
    """A number with its noun, plural unless it is 1. `spec` is the number's format, such as `,`."""
    return f"{number:{spec}} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "sh", "ch", "x")) else f"{noun}s"
