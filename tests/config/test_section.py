"""Every number has a range and is finite; paths know the home folder; texts can be written to a file."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints  # Any: types of all fields

import pytest

from diffmoe_scale.config.data import DatasetConfig
from diffmoe_scale.config.keys import sections
from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.section import Range, marks_of

KINDS = {**sections(), "data.train.0": DatasetConfig}
ABSURD = [
    "nan",
    ".nan",
    "inf",
    ".inf",
    "-.inf",
    "-1e308",
    "1e400",
    str(2**70),
    str(10**400),
    "-1",
    "1e30",
    "true",
]


def holds_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(holds_numbers(inner) for inner in get_args(kind))


def number_fields() -> Iterator[tuple[str, str]]:
    for name, kind in KINDS.items():
        for field, hint in get_type_hints(kind).items():
            if field not in ("section_name", "is_free") and holds_numbers(hint):
                yield name, field


@pytest.mark.parametrize(("section", "field"), number_fields(), ids=str)
def test_every_number_has_a_range_of_finite_ends(section: str, field: str) -> None:
    (limits,) = [mark for mark in marks_of(KINDS[section])[field] if isinstance(mark, Range)]
    assert math.isfinite(limits.low) and math.isfinite(limits.high) and limits.low < limits.high


def written(section: str, field: str, value: str) -> str:
    """The assignment of a number, within what its field holds."""
    if section == "data.train.0":
        return f"data.train=[{{shards: [a.tar], {field}: {value}}}]"
    text = str(get_type_hints(KINDS[section])[field])
    if "Mapping" in text:
        return f"{section}.{field}={{txt: {value}}}"
    if "tuple[tuple" in text:
        return f"{section}.{field}=[[1, {value}]]"
    return f"{section}.{field}=" + (
        f"[{', '.join([value] * text.count('int') or [value])}]" if "tuple" in text else value
    )


@pytest.mark.parametrize(("section", "field"), number_fields(), ids=str)
def test_absurd_numbers_are_refused_by_name_or_within_the_range(section: str, field: str) -> None:
    (limits,) = [mark for mark in marks_of(KINDS[section])[field] if isinstance(mark, Range)]
    for value in ABSURD:
        word = written(section, field, value)
        try:
            config = load_config(None, [word])
        except ValueError as error:
            assert field in str(error) and len(str(error)) < 600 and str(error).count("\n") < 5, word
            continue
        found = config.data.train[0] if section == "data.train.0" else getattr(config, section)
        for number in _numbers(getattr(found, field)):
            assert math.isfinite(number) and number in limits, word


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return _numbers(list(value.values()))
    return [n for entry in value for n in _numbers(entry)] if isinstance(value, tuple | list) else [value]


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        (Range(0, 1), [0, 0.5, 1], [-0.1, 1.1, math.nan, math.inf, -math.inf]),
        (Range(0, 1, excludes_low=True), [0.1, 1], [0, math.nan]),
        (Range(0, 1, excludes_high=True), [0, 0.9], [1]),
    ],
)
def test_ends_of_a_range(limits: Range, inside: list[float], outside: list[float]) -> None:
    assert all(number in limits for number in inside) and not any(number in limits for number in outside)


def test_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(
        None,
        [
            "run.directory=~/run",
            "data.train=['~/a/*.tar', 'https://host/~user/b.tar']",
            "data.validation=['~/v.tar']",
            "data.cache_folder=~/cache",
            "data.index_folder=~/index",
            "autoencoder.kind=kl",
            "autoencoder.path=~/vae",
            "model.channels=4",
            "text.kind=open_clip",
            "text.open_clip_weights=local-dir:~/clip",
        ],
    )
    assert config.run.directory == "/home/someone/run"
    assert config.data.train == ("/home/someone/a/*.tar", "https://host/~user/b.tar")
    assert config.data.validation == ("/home/someone/v.tar",)
    assert (config.data.cache_folder, config.data.index_folder) == (
        "/home/someone/cache",
        "/home/someone/index",
    )
    assert config.autoencoder.path == "/home/someone/vae"
    assert config.text.open_clip_weights == "local-dir:/home/someone/clip"
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert load_config(tmp_path / "config.yaml") == config
    named = load_config(None, ["data.train=[{shards: ['~/x.tar'], weight: 1}]"]).data.train[0]
    assert isinstance(named, DatasetConfig) and named.shards == ("/elsewhere/x.tar",)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("run.directory=", "run.directory is ''; expected the name of a folder"),
        ("run.directory=' '", "run.directory is ' '"),
        ('run.directory="a\\0b"', "without a NUL byte"),
        ("run.directory=~nobody_of_that_name/x", "run.directory is '~nobody_of_that_name/x'"),
        ('data.train=["a\\0.tar"]', "data.train is"),
        ("run.directory=a\udcffb", "run.directory is"),
    ],
)
def test_paths_that_cannot_be_are_refused(word: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load_config(None, [word])
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_sections_are_frozen_dataclasses_with_a_docstring_each() -> None:
    for kind in sections().values():
        assert dataclasses.is_dataclass(kind) and kind.__doc__


def test_a_bound_is_shown_to_its_last_digit() -> None:
    with pytest.raises(ValueError, match=r"expected 0 to 9223372036854775807$"):
        load_config(None, ["run.seed=-1"])
