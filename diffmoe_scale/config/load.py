"""Config from YAML files and `key.sub=value` words, back to YAML, and its help text. pydantic's and yaml's
only door."""

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args  # Any: YAML trees before validation

import pydantic
import yaml

from diffmoe_scale.config.schema import Config

MODEL_SETTINGS = {
    "autoencoder": ("kind",),
    "text": ("kind", "width", "depth", "heads", "max_tokens", "open_clip_name"),
    "model": (
        "conditioning",
        "num_classes",
        "image_size",
        "channels",
        "patch_size",
        "depth",
        "width",
        "heads",
        "feed_forward_ratio",
        "size_conditioning",
    ),
    "moe": (
        "num_experts",
        "every",
        "router",
        "gate",
        "router_input",
        "shared_experts",
        "expert_width_ratio",
        "activation",
    ),
    "diffusion": ("kind", "prediction", "time_scale"),
}
"""What may change while a model trains is not here: backend, capacity, loss weights, time sampling, ..."""
UNION_MEMBERS = ("str", "DatasetConfig")
"""pydantic puts the kinds that a value could have had into its path."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The Config of a YAML file (None: all defaults) with `key.sub=value` overrides, values written as in
    YAML.

    Raises: ValueError naming the dotted path, what was got and what was expected; an unknown key names the
    nearest right one.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise ValueError(f"config file {path} does not exist")
        try:
            loaded = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config file {path} is not valid YAML: {error}") from error
        if not isinstance(loaded, dict | None):
            raise ValueError(
                f"config file {path} holds a {type(loaded).__name__}; expected sections such as 'run:' and 'data:'"
            )
        tree = loaded or {}
        _check_keys(tree, Config, "")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return pydantic.TypeAdapter(Config).validate_python(tree)
    except pydantic.ValidationError as error:
        raise ValueError(
            "\n".join(_sentence(entry) for entry in error.errors() if not _is_of_other_member(entry))
        ) from error


def config_tree(config: Config) -> dict[str, Any]:
    """The config as plain dictionaries, lists and scalars."""
    tree: dict[str, Any] = pydantic.TypeAdapter(Config).dump_python(config, mode="json")
    return tree


def model_settings(config: Config, *, tokenizer: Path, frozen: Mapping[str, str]) -> dict[str, Any]:
    """The settings that decide what a model's weights mean, its tokenizer among them; kept in checkpoints,
    and compared.

    `frozen` are the fingerprints of the networks that are not trained, by their section.
    """
    tree = config_tree(config)
    settings = {
        section: {key: tree[section][key] for key in keys} for section, keys in MODEL_SETTINGS.items()
    }
    settings["text"]["tokenizer_sha256"] = (
        sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else ""
    )
    for section, fingerprint in frozen.items():
        settings[section]["fingerprint"] = fingerprint
    return settings


def dump_config(config: Config) -> str:
    """The resolved config as YAML; `load_config` of it gives the same Config."""
    return yaml.safe_dump(config_tree(config), sort_keys=False, allow_unicode=True)


def changed_settings(path: Path, config: Config) -> list[str]:
    """What differs between a file of resolved settings and a config: `run.steps was 20, is 40`."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        return [f"{path} is no config file"]
    changed = []
    for section, settings in config_tree(config).items():
        before = found[section] if isinstance(found.get(section), dict) else {}
        changed += [
            f"{section}.{key} was {before.get(key)!r}, is {value!r}"
            for key, value in settings.items()
            if before.get(key) != value
        ]
    return changed


def describe_config() -> str:
    """Every setting with its type, default and meaning, for `--help`."""
    lines = []
    for section in dataclasses.fields(Config):
        lines.append(f"\n{section.name}:")
        kind = section.type
        assert isinstance(kind, type) and dataclasses.is_dataclass(kind)
        meanings = _field_docstrings(kind)
        for field in dataclasses.fields(kind):
            value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            default = yaml.safe_dump(
                list(value) if isinstance(value, tuple) else value, default_flow_style=True
            ).splitlines()[0]
            lines.append(f"  {section.name}.{field.name}={default}\n      {meanings[field.name]}")
    return "\n".join(lines)


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string literal below each field of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    meanings = {}
    for statement, after in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                f"{kind.__name__}.{statement.target.id} has no docstring"
            )
            meanings[statement.target.id] = " ".join(str(after.value.value).split())
    return meanings


def _check_keys(tree: dict[str, Any], kind: type, prefix: str) -> None:
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for key, value in tree.items():
        if key not in fields:
            raise ValueError(_unknown_key(f"{prefix}{key}", known=[f"{prefix}{name}" for name in fields]))
        field_type = fields[key]
        if inspect.isclass(field_type) and dataclasses.is_dataclass(field_type):
            if not isinstance(value, dict):
                raise ValueError(
                    f"{prefix}{key} is {value!r}; expected a section with keys such as {dataclasses.fields(field_type)[0].name!r}"
                )
            _check_keys(value, field_type, f"{prefix}{key}.")
        for number, entry in enumerate(value if isinstance(value, list) else ()):
            for member in _union_members(field_type):
                if isinstance(entry, dict) and isinstance(member, type) and dataclasses.is_dataclass(member):
                    _check_keys(entry, member, f"{prefix}{key}.{number}.")


def _union_members(field_type: Any) -> tuple[Any, ...]:  # of types and their unions
    """The kinds that an entry of a list can have."""
    return tuple(member for entry in get_args(field_type) for member in get_args(entry))


def _unknown_key(path: str, *, known: Sequence[str]) -> str:
    every_path = [
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)  # type: ignore[arg-type]  # sections are dataclasses
    ]
    *_, key = path.split(".")
    # The commonest slips: nearly right, and right in another section.
    near = [
        candidate
        for candidate in known
        if difflib.get_close_matches(key, candidate.split(".")[-1:], cutoff=0.8)
    ]
    near += [candidate for candidate in every_path if candidate.split(".")[-1] == key]
    near += difflib.get_close_matches(path, [*known, *every_path], n=1, cutoff=0.5)
    return f"{path} is no setting" + (
        f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"
    )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, is_assignment, text = override.partition("=")
    if not is_assignment:
        raise ValueError(
            f"argument {override!r} is no assignment; expected key.sub=value, for example run.steps=100"
        )
    section, _, key = path.partition(".")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        problem = str(error.problem if isinstance(error, yaml.MarkedYAMLError) else error)
        quotes = (
            f"; within a list, text with braces, brackets, commas or ': ' needs quotes: \"{path}=['a-{{000..099}}.tar']\""
            if text.startswith("[")
            else ""
        )
        raise ValueError(f"{path} is {text!r}, which is not a YAML value ({problem}){quotes}") from error
    _check_keys({section: {key: value}} if key else {section: value}, Config, "")
    if not key:
        raise ValueError(
            f"argument {override!r} names no setting; expected section.key=value, for example run.steps=100"
        )
    tree.setdefault(section, {})[key] = value


def _is_of_other_member(error: Any) -> bool:  # pydantic's ErrorDetails
    """Whether an error only says that a value is not of that kind of a union which it was not meant to be."""
    return (*error["loc"][-1:], isinstance(error["input"], dict)) in (("str", True), ("DatasetConfig", False))


def _sentence(error: Any) -> str:  # pydantic's ErrorDetails
    path = ".".join(str(part) for part in error["loc"] if part not in UNION_MEMBERS)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message  # our own sentences name their path
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "tuple_type":
        message = f"expected a list, for example [{error['input']}]"
    return f"{path} is {error['input']!r}; {message[0].lower()}{message[1:]}"
