import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe_scale.data.reading.batch import FAILURES, NOTES, collate
from diffmoe_scale.data.reading.captions import choose
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.reading.source import LONGEST_CAPTION
from tests.data.reading.sources import IMAGE, make_source
from tests.data.samples import Members, make_sample


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"txt": b" a red circle \n"}, ["a red circle"]),
        ({"txt": "grün".encode(), "json": b'{"caption": "second"}'}, ["grün"]),
        ({"json": b'{"caption": "from json", "other": 1}'}, ["from json"]),
        ({"json": json.dumps({"caption": ["one", " ", 3, None, "two"]}).encode()}, ["one", "two"]),
        ({"json": b'{"title": "no caption"}'}, []),
        ({"json": b'["no object"]'}, []),
        ({"json": b"{broken"}, []),
        ({"json": b"[" * 100_000}, []),
        ({"json": b"\xff\xfe\x00"}, []),
        ({"txt": b" \n "}, []),
        ({}, []),
    ],
)
def test_captions_come_from_txt_and_else_from_json(
    tmp_path: Path, members: Members, expected: list[str]
) -> None:
    source = make_source(tmp_path, [1], replaced={"0_0": {"png": IMAGE} | members})
    sample = source.load(0)
    captions = source.files.captions(0, source.catalog.index(0).members(0), source.config.caption_weights)
    assert [text for text, _ in captions] == expected
    assert sample.caption == (
        expected[0] if expected else ""
    ) and sample.is_uncaptioned == sample.is_dropped == (not expected)
    assert sample.failure is None and sample.picture is not None


def test_of_several_captions_each_is_drawn_equally_often(tmp_path: Path) -> None:
    texts = ["one", "two", "three"]
    source = make_source(
        tmp_path,
        [1],
        replaced={"0_0": {"png": IMAGE, "json": json.dumps({"caption": texts}).encode()}},
        is_augmented=True,
        caption_dropout=0.0,
    )
    drawn = [source.load(number).caption for number in range(900)]
    # Binomial: 300 +- 14; five standard deviations.
    assert all(abs(drawn.count(text) - 300) < 70 for text in texts)


def test_captions_are_drawn_by_the_weights_of_their_sources(tmp_path: Path) -> None:
    record = {"short": "short", "long": ["long one", "long two"], "unused": "unused", "fallback": "fallback"}
    members = {"png": IMAGE, "txt": b"text", "json": json.dumps(record).encode()}
    weights = {"txt": 1.0, "short": 1.0, "long": 2.0, "absent": 5.0, "fallback": 0.0}
    source = make_source(
        tmp_path,
        [1],
        replaced={"0_0": members},
        is_augmented=True,
        caption_dropout=0.0,
        caption_weights=weights,
    )
    drawn = Counter(source.load(number).caption for number in range(1000))
    # Binomial: 250 +- 13.7; five standard deviations.
    assert drawn.keys() == {"text", "short", "long one", "long two"} and all(
        abs(count - 250) < 69 for count in drawn.values()
    )


def test_a_source_of_weight_0_is_read_where_no_other_has_a_caption(tmp_path: Path) -> None:
    replaced = {
        "0_0": {"png": IMAGE, "json": b'{"long": "long", "alt": "alt"}'},
        "0_1": {"png": IMAGE, "json": b'{"long": " ", "alt": "alt"}'},
    }
    source = make_source(
        tmp_path,
        [2],
        replaced=replaced,
        is_augmented=True,
        caption_dropout=0.0,
        caption_weights={"long": 1.0, "alt": 0.0},
    )
    assert [{source.load(number).caption for number in range(row, 100, 2)} for row in (0, 1)] == [
        {"long"},
        {"alt"},
    ]


def test_a_draw_falls_into_a_weight() -> None:
    assert [choose([1.0, 0.0, 3.0], draw) for draw in (0.0, 0.2499, 0.25, 0.9999)] == [0, 0, 2, 2]
    assert choose([0.1] * 10, 1 - 2**-53) == 9


def test_a_caption_of_any_length_and_script_is_read(tmp_path: Path) -> None:
    text = "\N{CAT}\N{COMBINING ACUTE ACCENT} \u6f22\u5b57 \u0639\u0631\u0628\u064a "
    replaced = {
        "0_0": {"png": IMAGE, "txt": text.encode()},
        "0_1": {"png": IMAGE, "txt": (text * 10_000).encode()},
    }
    source = make_source(tmp_path, [2], replaced=replaced)
    short, long = source.load(0), source.load(1)
    assert short.caption == text.strip() and short.notes == ()
    assert long.caption == (text * 10_000)[:LONGEST_CAPTION] and [note.kind for note in long.notes] == [
        "long_caption"
    ]


def test_captions_are_dropped_at_the_configured_rate(tmp_path: Path) -> None:
    source = make_source(tmp_path, [1], is_augmented=True, caption_dropout=0.3)
    samples = [source.load(number) for number in range(1000)]
    # Binomial: 300 +- 14.5; five standard deviations.
    assert abs(sum(sample.is_dropped for sample in samples) - 300) < 73
    assert all(
        (sample.caption == "") == sample.is_dropped and not sample.is_uncaptioned for sample in samples
    )


def test_odd_captions_are_read_cleaned_and_noted(tmp_path: Path) -> None:
    texts = ["hello there".encode("utf-16"), "caf\u00e9".encode("cp1252"), b"\xef\xbb\xbfa house", b"a\0b"]
    replaced = {
        f"0_{row}": {"png": make_sample(0, row)["png"], "txt": text} for row, text in enumerate(texts)
    }
    half = b'{"caption": "an emoji cut in half \\ud83d"}'
    replaced["0_4"] = {"png": make_sample(0, 4)["png"], "txt": b" ", "json": half}
    source = replace(make_source(tmp_path, [5], replaced=replaced), is_augmented=False)
    samples = [source.load(number) for number in range(5)]
    found = {
        sample.key.split("/")[1]: (sample.caption, [note.kind for note in sample.notes]) for sample in samples
    }
    assert found == {
        "0_0": ("hello there", ["byte_order_mark"]),
        "0_1": ("caf\u00e9", ["not_utf8"]),
        "0_2": ("a house", ["byte_order_mark"]),
        "0_3": ("ab", ["nuls"]),
        "0_4": ("an emoji cut in half \ufffd", ["half_pair"]),
    }


def test_a_json_that_cannot_be_read_is_noted_where_it_is_looked_at(tmp_path: Path) -> None:
    texts = [
        b"{broken",
        b"[" * 3000,
        b'{"a":' * 3000,
        b'["no object"]',
        b"\xff\xfe\x00",
        b'{"title": "fine"}',
    ]
    replaced = {
        f"0_{row}": {"png": make_sample(0, row)["png"], "json": text} for row, text in enumerate(texts)
    }
    replaced["0_6"] = replaced["0_0"] | {"txt": b"a caption of its own"}
    source = replace(make_source(tmp_path, [7], replaced=replaced), is_augmented=False)
    samples = {sample.key.split("/")[1]: sample for sample in map(source.load, range(7))}
    for row in range(7):
        kinds = [note.kind for note in samples[f"0_{row}"].notes]
        assert ("unreadable_json" in kinds) == (row < 5), row
    assert samples["0_6"].caption == "a caption of its own"
    batch = collate(list(samples.values()), size=Size(4, 4))
    assert dict(zip((*FAILURES, *NOTES), batch.count_kinds().tolist(), strict=True))["unreadable_json"] == 5
