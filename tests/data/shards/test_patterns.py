import time
from pathlib import Path

import pytest

from diffmoe_scale.data.shards import patterns
from diffmoe_scale.data.shards.patterns import expand_patterns


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("a-{0..99999999}.tar", "stands for 100000000 shards; expected at most 1000000"),
        ("{0..9999}-{0..9999}.tar", "stands for 100000000 shards"),
        ("{0..999999999999999999}.tar", "expected at most 1000000"),
        ("${DATA}/a.tar", "holds '${DATA}', which no shell has replaced"),
        ("$DATA/a.tar", "holds '$DATA'"),
        ("a-{0..3.tar", "cannot be read"),
        ("a-0..3}.tar", "cannot be read"),
        ("[x.tar", "matches no file"),
        ("", "not there, or no file"),
    ],
)
def test_patterns_that_nothing_can_be_read_from_get_a_sentence(pattern: str, sentence: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError) as error:
        expand_patterns([pattern])
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert time.monotonic() - start < 5


def test_a_file_with_signs_of_patterns_in_its_name_is_that_file(tmp_path: Path) -> None:
    for name in ("set [v1]", "${X}", "{0..3}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").touch()
        assert expand_patterns([str(tmp_path / name / "a.tar")]) == [tmp_path / name / "a.tar"]


def test_braces_and_steps_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_SHARDS", 3)
    for number in (0, 2, 4):
        (tmp_path / f"{number}.tar").touch()
    assert [path.name for path in expand_patterns([f"{tmp_path}/{{0..4..2}}.tar"])] == [
        "0.tar",
        "2.tar",
        "4.tar",
    ]
