import time
from pathlib import Path

import pytest
from webdataset.gopen import gopen_schemes

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
        ("file://other/a.tar", "names the machine 'other'; a file of this one is file:///PATH,"),
        ("file:pipe:cat a.tar", "1 of 1 shard not there, or no file: pipe:cat a.tar"),
        ("file:absent.tar", "1 of 1 shard not there, or no file: absent.tar"),
        ("fish://host/a.tar", "is a URL of 'fish', which nothing here fetches; expected one of http, https"),
    ],
)
def test_patterns_that_nothing_can_be_read_from_get_a_sentence(pattern: str, sentence: str) -> None:
    start = time.process_time()
    with pytest.raises(ValueError) as error:
        expand_patterns([pattern])
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert time.process_time() - start < 5


def test_a_file_with_signs_of_patterns_in_its_name_is_that_file(tmp_path: Path) -> None:
    for name in ("set [v1]", "${X}", "{0..3}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").touch()
        assert expand_patterns([str(tmp_path / name / "a.tar")]) == [tmp_path / name / "a.tar"]


@pytest.mark.parametrize("beginning", ["file:", "file://", "file://localhost"])
def test_a_file_url_is_the_file(tmp_path: Path, beginning: str) -> None:
    (tmp_path / "a b").mkdir()
    for number in range(2):
        (tmp_path / "a b" / f"{number}.tar").touch()
    expected = [tmp_path / "a b" / "0.tar", tmp_path / "a b" / "1.tar"]
    for name in ("*.tar", "{0..1}.tar"):
        assert expand_patterns([f"{beginning}{tmp_path}/a b/{name}"]) == expected
        assert expand_patterns([f"{beginning}{tmp_path}/a%20b/{name}"]) == expected


def test_a_file_whose_name_looks_like_a_url_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "http:a.tar").touch()
    assert expand_patterns(["http:a.tar"]) == [Path("http:a.tar")]


def test_every_kind_of_url_has_a_handler() -> None:
    handled = {"s3", *gopen_schemes} - {"__default__"}
    assert set(patterns.SCHEMES) == handled


def test_braces_and_steps_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_SHARDS", 3)
    for number in (0, 2, 4):
        (tmp_path / f"{number}.tar").touch()
    assert [path.name for path in expand_patterns([f"{tmp_path}/{{0..4..2}}.tar"])] == [
        "0.tar",
        "2.tar",
        "4.tar",
    ]
