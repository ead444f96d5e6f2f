import pytest

from diffmoe_scale.json_text import parse_json

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", ["", "{", "NaN nonsense", b"\xff\xff", DEEP, DEEP + "]" * len(DEEP)])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_is_what_it_says() -> None:
    assert parse_json(b'{"a": [1, 2.5, null, "\xc3\xa9"]}') == {"a": [1, 2.5, None, "\u00e9"]}
    assert parse_json('{"a": 1, "a": 2}', object_pairs_hook=list) == [("a", 1), ("a", 2)]
