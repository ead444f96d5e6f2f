"""A Config from a YAML file and `key.sub=value` words, and back to YAML."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar  # Any: YAML trees, settings of any kind

import pydantic
import yaml

from diffmoe_scale.config.choices import follow_others
from diffmoe_scale.config.keys import check_keys
from diffmoe_scale.config.origin import mark_foreign
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import show
from diffmoe_scale.config.yaml_file import parse_yaml, read_yaml

T = TypeVar("T")

UNION_MEMBERS = ("str", "DatasetConfig")
"""pydantic puts the kinds that a value could have had into its path."""
SHOWN_ERRORS = 4
PLAIN_WORDS = {"int_": "a whole number", "float_": "a number", "bool_": "true or false"}
"""By the beginning of pydantic's kinds of errors."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file (None: all defaults) with `key.sub=value` overrides, values as in YAML.

    Raises: ValueError naming the dotted path, what was got and what was expected; an unknown key names the
    nearest right one.
    """
    return make_config(read_yaml(path) if path is not None else {}, overrides)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The same of a run's own config.yaml, which may come from someone else: no command among its shards
    ("pipe:...") is run, those of the overrides are.

    Raises: ValueError, as `load_config`.
    """
    tree = read_yaml(path)
    mark_foreign(tree)
    return make_config(tree, overrides)


def make_config(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The Config of a tree of settings, which is completed in place. Raises: as `load_config`."""
    check_keys(tree)
    words: dict[str, Any] = {}
    for override in overrides:
        section, key, value = parse_override(override)
        for settings in (tree, words):
            settings.setdefault(section, {})[key] = value
    follow_others(tree, words)
    return validate(Config, tree)


def validate(kind: type[T], tree: dict[str, Any]) -> T:
    """The settings of a tree whose keys were checked. Raises: ValueError, a sentence a wrong value."""
    hashable: Any = kind  # mypy 1.x takes type[T] for something that cannot be a key
    try:
        validated: T = _adapter(hashable).validate_python(tree)
        return validated
    except pydantic.ValidationError as error:
        sentences = [_sentence(entry) for entry in error.errors() if not _is_of_other_member(entry)]
        more = [f"and {len(sentences) - SHOWN_ERRORS} more"] if len(sentences) > SHOWN_ERRORS else []
        raise ValueError("\n".join(sentences[:SHOWN_ERRORS] + more)) from error


def config_tree(config: Config) -> dict[str, Any]:
    """The config as plain dictionaries, lists and scalars."""
    tree: dict[str, Any] = _adapter(Config).dump_python(config, mode="json")
    return tree


def dump_config(config: Config) -> str:
    """The resolved config as YAML; `load_config` of it gives the same Config."""
    return yaml.safe_dump(config_tree(config), sort_keys=False, allow_unicode=True)


def changed_settings(path: Path, config: Config) -> list[str]:
    """What differs between a file of resolved settings and a config: `run.steps was 20, is 40`. A setting
    that the file lacks, of an older version, had its default."""
    try:
        found = read_yaml(path)
    except ValueError:
        return [f"{path} is no config file"]
    changed, defaults = [], config_tree(Config())
    for section, settings in config_tree(config).items():
        stored = found[section] if isinstance(found.get(section), dict) else {}
        before = defaults[section] | stored
        changed += [
            f"{section}.{key} was {before[key]!r}, is {value!r}"
            for key, value in settings.items()
            if before[key] != value
        ]
    return changed


@cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Made once: it takes longer than all else."""
    return pydantic.TypeAdapter(kind)


def parse_override(override: str, root: type = Config) -> tuple[str, str, Any]:
    """Section, key and value of `section.key=value`. Raises: ValueError."""
    path, is_assignment, text = override.partition("=")
    if not is_assignment:
        raise ValueError(
            f"argument {show(override)} is no assignment; expected key.sub=value, for example run.steps=100"
        )
    section, _, key = path.partition(".")
    try:
        value = parse_yaml(text) if text else ""
    except ValueError as error:
        quotes = (
            "; within a list, text with braces, brackets, commas or ': ' needs quotes: "
            f"\"{path}=['a-{{000..099}}.tar']\""
            if text.startswith("[")
            else ""
        )
        raise ValueError(f"{path} is {show(text)}, which is not a YAML value ({error}){quotes}") from error
    check_keys({section: {key: value}} if key else {section: value}, root, root=root)
    if not key:
        raise ValueError(
            f"argument {show(override)} names no setting; expected section.key=value, for example "
            "run.steps=100"
        )
    return section, key, value


def _is_of_other_member(error: Any) -> bool:  # pydantic's ErrorDetails
    """Whether an error only says that a value is not of that kind of a union which it was not meant to be."""
    return (*error["loc"][-1:], isinstance(error["input"], dict)) in (("str", True), ("DatasetConfig", False))


def _sentence(error: Any) -> str:  # pydantic's ErrorDetails
    path = ".".join(str(part) for part in error["loc"] if part not in UNION_MEMBERS)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        # Our own sentences name their path; only the list knows the number of an entry.
        return message.replace(re.sub(r"\d+$", "N", path), path) if path[-1:].isdigit() else message
    if error["type"] == "missing":
        return f"{path} is missing"
    if plain := next((plain for kind, plain in PLAIN_WORDS.items() if error["type"].startswith(kind)), ""):
        return f"{path} is {show(error['input'])}; expected {plain}"
    if error["type"] == "tuple_type" and not error["input"]:
        message = "expected a list, for example [a.tar]"
    elif error["type"] == "tuple_type":
        message = f"expected a list, for example [{show(error['input']).strip(chr(39))}]"
    return f"{path} is {show(error['input'])}; {message[0].lower()}{message[1:]}"
