"""Keys of a YAML tree against the sections: an unknown one is named with the nearest right one."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints  # Any: YAML trees before validation

from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import Section, show


def check_keys(
    tree: Mapping[str, Any], kind: type = Config, prefix: str = "", *, root: type = Config
) -> None:
    """`kind` is the class of this part of the tree, `root` that of the whole, whose settings are suggested.

    Raises: ValueError for a key that is no setting, or a section that is none.
    """
    types = get_type_hints(kind)
    for key, value in tree.items():
        if key not in types:
            known = [f"{prefix}{name}" for name in _names(kind)]
            raise ValueError(_unknown_key(f"{prefix}{key}", known=known, root=root))
        if (section := _section(types[key])) is not None:
            if not isinstance(value, dict):
                first = _names(section)[0]
                raise ValueError(
                    f"{prefix}{key} is {show(value)}; expected a section with keys such as {first!r}"
                )
            check_keys(value, section, f"{prefix}{key}.", root=root)
        for number, entry in enumerate(value if isinstance(value, list) else ()):
            for section in entry_sections(types[key]):
                if isinstance(entry, dict):
                    check_keys(entry, section, f"{prefix}{key}.{number}.", root=root)


def sections(root: type = Config) -> dict[str, type[Section]]:
    """The sections of the config by their name."""
    return {name: kind for name, kind in get_type_hints(root).items() if _section(kind)}


def _section(kind: Any) -> type[Section] | None:  # any type of a field
    return kind if inspect.isclass(kind) and issubclass(kind, Section) else None


def _names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # a dataclass


def entry_sections(field_type: Any) -> list[type[Section]]:  # of any type of a field
    """The sections that an entry of a list can be."""
    members = [member for entry in get_args(field_type) for member in get_args(entry) or (entry,)]
    return [section for member in members if (section := _section(member)) is not None]


def _unknown_key(path: str, *, known: Sequence[str], root: type) -> str:
    every_path = [f"{section}.{name}" for section, kind in sections(root).items() for name in _names(kind)]
    *_, key = path.split(".")
    # The commonest slips: nearly right, and right in another section.
    near = [name for name in known if difflib.get_close_matches(key, name.split(".")[-1:], cutoff=0.8)]
    elsewhere = [name for name in every_path if name.split(".")[-1] == key]
    if not near and len(elsewhere) > 1:
        # `precision` or `kind` alone does not say which section was meant.
        near = [" or ".join(elsewhere)]
    near += elsewhere
    near += difflib.get_close_matches(path[:80], [*known, *every_path], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"
    return f"{show(path)[1:-1]} is no setting{hint}"
