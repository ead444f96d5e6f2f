import os
import random
import time
from pathlib import Path

import pytest

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.yaml_file import parse_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"run: {steps: 1, steps: 2}", "line 1, column 17: the key 'steps' stands there twice"),
        (b"run: {steps: 1}\nrun: {seed: 2}", "line 2, column 1: the key 'run' stands there twice"),
        (BOMB.encode(), "more than 20000 values"),
        (b"run: &a {steps: *a}", "an alias stands within what it names"),
        (b"[" * 3000, "nested too deeply"),
        (b"run: " + b"{a: " * 3000, "nested too deeply"),
        (b"run: {steps: 1\0}", "special characters"),
        (b"\xff\xferun", "is in UTF-16"),
        (b"run: \xe9", "is not in UTF-8"),
        (b"run:\n\tsteps: 3", "line 2"),
        (b"run: {steps: 1}\n---\nrun: {}", "another document"),
        (b"run: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (b"run: {? [a] : 1}", "a key is no plain word"),
        (
            b"run:\n  seed: 2020-13-45",
            "line 2, column 9: '2020-13-45' cannot be read as a value (month must be",
        ),
        (b"run:\n  seed: !!bool maybe", "line 2, column 9: 'maybe' cannot be read as a value"),
        (b"run:\n  seed: !!set [1]", "line 2, column 9: expected a mapping node"),
        (b"run: [", "line 1"),
        (b"x" * (1 << 21), "bytes; expected settings"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_could_not_be_meant_is_refused_in_a_line_and_quickly(
    text: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_bytes(text)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"c\.yaml") as error:
        load_config(tmp_path / "c.yaml")
    assert sentence in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.process_time() - start < 5


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a folder or a device"):
            load_config(path)
    with pytest.raises(ValueError, match="does not exist"):
        load_config(tmp_path / "missing.yaml")


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "captions_64.yaml").touch()
    for name, hint in (("captions_46.yaml", f"; did you mean {tmp_path / 'captions_64.yaml'}?"), ("q", "")):
        with pytest.raises(ValueError) as error:
            load_config(tmp_path / name)
        assert str(error.value) == f"config file {tmp_path / name} does not exist{hint}"


def test_byte_order_marks_aliases_and_merged_keys_are_read(tmp_path: Path) -> None:
    text = "\ufeffrun: &base {steps: 7}\ndata: {caption_weights: &w {txt: 1}}\ncheckpoint: {every: 3}\n"
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "c.yaml").run.steps == 7
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_numbers_as_people_write_them() -> None:
    config = load_config(None, ["optimizer.learning_rate=1e-3", "run.steps=1_000", "optimizer.eps=1E-7"])
    assert (config.optimizer.learning_rate, config.run.steps, config.optimizer.eps) == (1e-3, 1000, 1e-7)


@pytest.mark.slow
def test_damaged_text_gives_a_config_or_a_short_sentence(tmp_path: Path) -> None:
    """520 texts: the resolved defaults with pieces cut, doubled, replaced or made of YAML's own signs."""
    good = dump_config(load_config(None))
    pieces = [
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "&a ",
        "*a ",
        "!!x ",
        "'",
        '"',
        "|",
        ">",
        "\t",
        "%",
        "@",
        "`",
        "? ",
        "~",
        "nan",
        "\ud7ff",
        "\x07",
        "#",
    ]
    for case in range(520):
        draw = random.Random(case)
        text = good
        for _ in range(draw.randint(1, 4)):
            first, last = sorted(draw.randrange(len(text)) for _ in range(2))
            last = min(last, first + 40)
            text = text[:first] + draw.choice(["", draw.choice(pieces), text[first:last] * 2]) + text[last:]
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        try:
            assert isinstance(load_config(tmp_path / "c.yaml"), Config)
        except ValueError as error:
            assert str(error).count("\n") < 5 and len(str(error)) < 2500, (case, str(error))
