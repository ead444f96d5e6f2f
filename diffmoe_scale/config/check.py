"""One sentence for each wrong setting and each failure that was foreseen: what was got and expected."""

from diffmoe_scale.config.section import show


class RunError(RuntimeError):
    """A failure while running whose sentence says all, what to do among it: shown without a traceback."""


def require(condition: bool, path: str, got: object, expected: str) -> None:
    """Raise ValueError naming the dotted config path unless the condition holds."""
    if not condition:
        raise ValueError(f"{path} is {show(got)}; expected {expected}")
