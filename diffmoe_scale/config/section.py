"""What all sections share: ranges of numbers, paths, and which settings a model's identity is free of."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, ClassVar, get_type_hints  # Any: values of all settings

LONGEST_SHOWN = 120


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, one or both ends left out; also for the numbers of a list."""

    low: float
    high: float
    excludes_low: bool = False
    excludes_high: bool = False

    def __contains__(self, number: float) -> bool:
        is_low = number <= self.low if self.excludes_low else number < self.low
        is_high = number >= self.high if self.excludes_high else number > self.high
        return is_finite(number) and not is_low and not is_high

    def __str__(self) -> str:
        if not self.excludes_low and not self.excludes_high:
            return f"{_plain(self.low)} to {_plain(self.high)}"
        low = f"above {_plain(self.low)}" if self.excludes_low else f"at least {_plain(self.low)}"
        high = f"below {_plain(self.high)}" if self.excludes_high else f"at most {_plain(self.high)}"
        return f"{low} and {high}"


def is_finite(number: float) -> bool:
    """Also of an integer that is too large for `math.isfinite`."""
    return isinstance(number, int) or math.isfinite(number)


@dataclass(frozen=True)
class _Mark:
    meaning: str


FREE = _Mark("may change while a model trains: it does not decide what the weights mean")
PATH = _Mark("a path, or a list of paths and patterns: a leading ~ is the home folder")


class Section:
    """Base of the sections: a dataclass whose fields say their range (`Annotated[int, Range(1, 9)]`), whether
    they are paths (PATH) and whether a model's identity is free of them (FREE).

    `name` is the section's in the config; of a section that `is_free` all fields are.
    """

    section_name: ClassVar[str]
    is_free: ClassVar[bool]

    def __init_subclass__(cls, *, name: str, is_free: bool = False) -> None:
        cls.section_name, cls.is_free = name, is_free

    def __post_init__(self) -> None:
        """Raises: ValueError that names the setting."""
        for name, marks in marks_of(type(self)).items():
            value = getattr(self, name)
            if PATH in marks:
                object.__setattr__(self, name, value := expand_home(value, f"{self.section_name}.{name}"))
            for text in texts_in(value):
                refuse_odd_text(text, f"{self.section_name}.{name}")
            for limits in (mark for mark in marks if isinstance(mark, Range)):
                for number in numbers_in(value):
                    if number not in limits:
                        raise ValueError(f"{self.section_name}.{name} is {show(value)}; expected {limits}")


def marks_of(section: type) -> Mapping[str, tuple[Any, ...]]:
    """What stands in the Annotated of each field."""
    hints = get_type_hints(section, include_extras=True)
    fields = dataclasses.fields(section)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in fields}


def numbers_in(value: object) -> Iterator[float]:
    """The numbers of a setting: itself, or those of its list or mapping."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from numbers_in(entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from numbers_in(entry)


def texts_in(value: object) -> Iterator[str]:
    """The texts of a setting: itself, or those of its list or mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from texts_in(entry)


def refuse_odd_text(text: str, setting: str) -> None:
    """Raises: ValueError for a NUL, or for bytes that are no UTF-8: no file could hold them."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text)):
        raise ValueError(f"{setting} is {show(text)}; expected text in UTF-8 without a NUL byte")


def expand_home(value: Any, setting: str) -> Any:  # a text, or a tuple of texts and of other sections
    """`~` and `~NAME` at the beginning of a path, or of each path of a list, made the home folder."""
    if isinstance(value, tuple):
        return tuple(expand_home(entry, setting) for entry in value)
    kind, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if colon and rest.startswith("~") and kind == "local-dir":
        return f"{kind}:{expand_home(rest, setting)}"
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{setting} is {value!r}; expected a path ({error})") from error


def show(value: object) -> str:
    """A value as an error quotes it, cut to a line."""
    shortener = Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = LONGEST_SHOWN
    shortener.maxlist = shortener.maxtuple = shortener.maxdict = 8
    return shortener.repr(value)


def _plain(number: float) -> str:
    """Whole numbers as they are typed."""
    is_whole = isinstance(number, int) or (number.is_integer() and abs(number) < 1e15)
    return str(int(number)) if is_whole else f"{number:g}"
