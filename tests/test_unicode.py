import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmoe_scale.unicode import (
    BYTE_ORDER_MARK,
    CUT,
    HALF_PAIR,
    LONGEST_NAME,
    NOT_UTF8,
    NULS,
    TEXT_NOTES,
    clean_name,
    clean_text,
    decode_text,
    safe_member_name,
)


@pytest.mark.parametrize(
    ("data", "text", "notes"),
    [
        (b"plain", "plain", ()),
        ("ein grüner Kreis 😀".encode(), "ein grüner Kreis 😀", ()),
        (b"\xef\xbb\xbfa red house", "a red house", (BYTE_ORDER_MARK,)),
        ("hello there".encode("utf-16"), "hello there", (BYTE_ORDER_MARK,)),
        ("café noir".encode("cp1252"), "café noir", (NOT_UTF8,)),
        (b"a\0b", "ab", (NULS,)),
        (b"\xef\xbb\xbfcaf\xe9", "café", (BYTE_ORDER_MARK, NOT_UTF8)),
        (b"\xff\xfe\xff", "\ufffd", (BYTE_ORDER_MARK, CUT)),
        (b"", "", ()),
    ],
)
def test_every_text_is_read_and_what_was_odd_is_noted(data: bytes, text: str, notes: tuple[str, ...]) -> None:
    assert decode_text(data) == (text, notes)


def test_halves_of_a_pair_are_joined_or_replaced() -> None:
    assert clean_text("\ud83d\ude00") == ("😀", (HALF_PAIR,))
    assert clean_text("cut \ud83d") == ("cut �", (HALF_PAIR,))


@given(data=st.binary(max_size=40))
def test_all_bytes_give_a_text_that_can_be_written(data: bytes) -> None:
    text, notes = decode_text(data)
    assert "\0" not in text and text.encode().decode() == text and set(notes) <= set(TEXT_NOTES)


@given(text=st.text(alphabet=st.characters(), max_size=40))
def test_names_are_safe_to_print(text: str) -> None:
    assert clean_name(text).isprintable()


def test_names_are_one_line_of_bounded_length() -> None:
    assert clean_name("a\x1b[31m\n\udce9‮") == "a\\x1b[31m\\n\\udce9\\u202e"
    assert len(clean_name("x" * 1000)) == LONGEST_NAME + 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_wide_encodings_are_read_with_and_most_without_their_mark(encoding):
    latin = "a red circle beside a café"
    assert decode_text(latin.encode(encoding))[0] == latin
    if encoding in ("utf-16", "utf-32"):
        text, notes = decode_text("a café, \u6f22 \U0001f408".encode(encoding))
        assert (text, notes) == ("a café, \u6f22 \U0001f408", ("byte_order_mark",))


def test_cut_utf16_keeps_what_is_whole():
    text, notes = decode_text("\u6f22\u5b57".encode("utf-16")[:-1])
    assert text == "\u6f22\ufffd" and notes == ("byte_order_mark", "cut_text")


def test_control_characters_are_left_out_and_noted():
    assert decode_text(b"a \x1b[31mred\x07 cat\nsits") == ("a [31mred cat\nsits", ("control_characters",))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b", "a/b"),
        ("/etc/passwd", "etc/passwd"),
        ("../../x", "x"),
        ("a/./../b", "a/b"),
        ("..", "unnamed"),
        ("a\x1bb", "a\\x1bb"),
        ("k" * 400 + "/1", "k" * 400 + "/1"),
    ],
)
def test_names_in_archives_stay_below_their_folder(name: str, safe: str) -> None:
    assert safe_member_name(name) == safe
