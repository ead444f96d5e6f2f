"""One sentence for every wrong setting: what was got, what was expected."""


def require(condition: bool, path: str, got: object, expected: str) -> None:
    """Raise ValueError naming the dotted config path unless the condition holds."""
    if not condition:
        raise ValueError(f"{path} is {got!r}; expected {expected}")
