"""The text of `--help`: every setting with its type, range, default and meaning."""

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints  # Any: defaults of all settings

import yaml

from diffmoe_scale.config.keys import check_keys, entry_sections, sections
from diffmoe_scale.config.section import Range, Section, marks_of

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def describe_config(name: str = "") -> str:
    """The settings of one section, one setting (`run.steps`), or all; those of the entries of a list below
    their section's.

    Raises: ValueError if there is no such section or setting.
    """
    known = sections()
    section, _, setting = name.strip().partition("=")[0].partition(".")
    if section and section not in known:
        raise ValueError(f"--help {name}: there is no such section; expected one of {', '.join(known)}")
    if setting:
        check_keys({section: {setting: None}})
        return "\n".join(_describe_settings(section, known[section], [setting]))
    chosen = {section: known[section]} if section else known
    return "\n".join(line for name, kind in chosen.items() for line in _describe_all(name, kind))


def _describe_all(name: str, kind: type[Section]) -> list[str]:
    """A section, and the sections that the entries of its lists are."""
    entries = [entry for field_type in get_type_hints(kind).values() for entry in entry_sections(field_type)]
    return [
        line
        for section_name, section in [(name, kind), *((entry.section_name, entry) for entry in entries)]
        for line in _describe(section_name, section)
    ]


def _describe(name: str, kind: type[Section]) -> list[str]:
    title = f"\n{name}: {inspect.cleandoc(kind.__doc__ or '')}".replace("\n    ", " ")
    return [title, *_describe_settings(name, kind, list(_field_docstrings(kind)))]


def _describe_settings(section: str, kind: type[Section], names: Sequence[str]) -> list[str]:
    """Name, default, range and meaning of some settings."""
    lines = []
    meanings, types, marks = _field_docstrings(kind), get_type_hints(kind), marks_of(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # sections are dataclasses
        if field.name not in names:
            continue
        allowed = _allowed(types[field.name], marks[field.name])
        lines.append(f"  {section}.{field.name}={_default(field)}{allowed}\n      {meanings[field.name]}")
    return lines


def _default(field: dataclasses.Field[Any]) -> str:  # a default of any type
    if field.default_factory is not dataclasses.MISSING:
        return _as_yaml(field.default_factory())
    return "..." if field.default is dataclasses.MISSING else _as_yaml(field.default)


def _allowed(kind: Any, marks: tuple[Any, ...]) -> str:  # any type of a field
    """What a value can be, in brackets; nothing for lists, which their meaning describes."""
    if get_origin(kind) is Literal:
        return f"   [{', '.join(map(str, get_args(kind)))}]"
    limits = next((str(mark) for mark in marks if isinstance(mark, Range)), "")
    if limits:
        return f"   [{WORDS[kind] + ', ' if kind in WORDS else 'each '}{limits}]"
    return f"   [{WORDS[kind]}]" if kind is bool else ""


def _as_yaml(value: Any) -> str:  # a default of any type
    shown = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(shown, default_flow_style=True, width=10_000).splitlines()[0]


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string literal below each field of a dataclass, as one line."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert is_text, f"{kind.__name__}.{name} has no docstring"
            meanings[name] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]  # above
    return meanings
