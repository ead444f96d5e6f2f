"""Files of prompts, right and wrong, and the pictures that they ask for."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffmoe_scale.sampling import prompts
from diffmoe_scale.sampling.batch import Request
from diffmoe_scale.sampling.prompts import (
    PromptRow,
    clean_prompt,
    decode_argument,
    make_requests,
    read_prompt_file,
)


def read(folder: Path, name: str, content: str | bytes) -> list[PromptRow]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_prompt_file(path)


def test_lines_of_text_are_prompts_whatever_the_line_ends(tmp_path: Path) -> None:
    rows = read(tmp_path, "p.txt", b'\xef\xbb\xbf one \r\n\n\rtwo, "three"\n  \nfour \xc3\xa9')
    assert rows == [
        PromptRow("one"),
        PromptRow('two, "three"'),
        PromptRow("four \N{LATIN SMALL LETTER E WITH ACUTE}"),
    ]


def test_json_lines_may_have_seeds_and_negative_prompts(tmp_path: Path) -> None:
    lines = [
        {"prompt": "one", "tag": "counting", "include": [{"class": "a"}]},
        {"prompt": "two", "seed": 4, "negative_prompt": "three"},
        {"prompt": "five", "seed": None, "negative_prompt": None},
        {"prompt": "six\u2028seven \ud83d\ude00"},
    ]
    rows = read(tmp_path, "p.jsonl", "\n\n".join(json.dumps(line) for line in lines))
    assert rows == [
        PromptRow("one"),
        PromptRow("two", "three", 4),
        PromptRow("five"),
        PromptRow("six\u2028seven \N{GRINNING FACE}"),
    ]


@pytest.mark.parametrize(("name", "comma"), [("p.csv", ","), ("p.TSV", "\t")])
def test_tables_have_a_column_of_prompts_and_maybe_others(tmp_path: Path, name: str, comma: str) -> None:
    lines = ["id,seed,prompt,negative_prompt", '1,7,"a, ""b""\nc",', '"2",,two,three', ""]
    text = "\n".join(lines).replace(",", comma)
    assert read(tmp_path, name, text) == [
        PromptRow(f'a{comma} "b"\nc', None, 7),
        PromptRow("two", "three", None),
    ]


def test_a_prompt_of_a_million_letters_is_read(tmp_path: Path) -> None:
    for name, text in (("p.txt", "{}"), ("p.csv", "prompt\n{}"), ("p.jsonl", '{{"prompt": "{}"}}')):
        assert read(tmp_path, name, text.format("x" * 1_000_000)) == [PromptRow("x" * 1_000_000)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", " \n", "p.txt holds no prompt"),
        ("p.csv", "prompt\n", "p.csv holds no prompt"),
        ("p.json", "[]", "p.json is no file of prompts that is read; expected .txt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "p.jsonl line 2 is no JSON (Expecting value"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1 is no JSON (prompt is there more than once)"),
        ("p.jsonl", "[" * 100_000, "p.jsonl line 1 is no JSON ("),
        ("p.jsonl", '"text"', "p.jsonl line 1 is '\"text\"'; expected an object"),
        ("p.jsonl", '{"text": "a"}', "p.jsonl line 1 has no prompt; it has 'text'"),
        ("p.jsonl", '{"prompt": ["a"]}', "p.jsonl line 1: prompt is ['a']; expected text"),
        ("p.jsonl", '{"prompt": "  "}', "p.jsonl line 1 has an empty prompt"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "seed is 1.5; expected a whole number, 0 to 4294967295"),
        ("p.jsonl", '{"prompt": "a", "seed": true}', "seed is True"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed is -1"),
        ("p.csv", "text\na", "p.csv line 1 names no column prompt; it names 'text'"),
        ("p.csv", "prompt,prompt\na,b", "names the column prompt more than once"),
        ("p.csv", "prompt,seed\na", "p.csv line 2 has 1 cells; the header has 2"),
        ("p.csv", "prompt,seed\na,x", "p.csv line 2: seed is 'x'"),
        ("p.csv", 'prompt\na\n"b" c\n', "p.csv line 3 is no line of a table"),
        ("p.csv", 'prompt\n"a', "p.csv line 2 is no line of a table"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        read(tmp_path, name, content)
    assert message in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["p.txt", "p.jsonl", "p.csv", "p.tsv"]),
    st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from('prompt,seed\t"\n\r{}[]:\\ud8\x00 1\x1b'), max_size=80).map(str.encode),
        st.text(max_size=60).map(lambda text: b"prompt,seed\n" + text.encode("utf-8", "replace")),
        st.text(max_size=60).map(lambda text: b'{"prompt": "' + text.encode("utf-8", "replace") + b'"}'),
    ),
)
def test_any_file_is_read_or_refused_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    try:
        rows = read(tmp_path, name, content)
    except ValueError as error:
        assert str(tmp_path / name) in str(error) and len(str(error)) < 1000
        return
    assert rows
    for row in rows:
        assert row.prompt == row.prompt.strip() != "" and row.prompt.encode()


def test_halves_of_surrogate_pairs_are_replaced() -> None:
    assert clean_prompt(" a\udcff\ud83d b\0 ") == "a\ufffd\ufffd b"


def test_a_file_that_is_no_utf_8_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "p.txt", b"caf\xe9") == [PromptRow("caf\N{LATIN SMALL LETTER E WITH ACUTE}")]
    assert f"{tmp_path / 'p.txt'}: text that is no UTF-8" in caplog.text
    assert read(tmp_path, "p.csv", "prompt\nx".encode("utf-16")) == [PromptRow("x")]


def test_pictures_are_numbered_through_but_rows_with_a_seed_begin_anew() -> None:
    rows = [PromptRow("a"), PromptRow("b", "x", 9), PromptRow("c", "")]
    assert make_requests(rows, count=2, seed=5, negative_prompt="n") == [
        Request("a", 5, 0, "n"),
        Request("a", 5, 1, "n"),
        Request("b", 9, 0, "x"),
        Request("b", 9, 1, "x"),
        Request("c", 5, 4, ""),
        Request("c", 5, 5, ""),
    ]
    assert make_requests([3], count=1, seed=5, negative_prompt="") == [Request(3, 5, 0)]


@pytest.mark.parametrize("locale", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize(
    "text", ["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{CJK UNIFIED IDEOGRAPH-65E5}", "a"]
)
def test_a_prompt_of_the_command_line_is_utf_8_in_any_locale(
    monkeypatch: pytest.MonkeyPatch, locale: str, text: str
) -> None:
    monkeypatch.setattr(prompts.os, "fsencode", lambda argument: argument.encode(locale, "surrogateescape"))
    assert decode_argument(text.encode().decode(locale, "surrogateescape")) == text
    assert (
        decode_argument(b"caf\xe9".decode(locale, "surrogateescape"))
        == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    )
    assert decode_argument("half \ud83d") == "half \N{REPLACEMENT CHARACTER}"
