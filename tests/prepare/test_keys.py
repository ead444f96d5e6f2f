from hypothesis import given
from hypothesis import strategies as st

from diffmoe_scale.prepare.keys import Keys, key_stem


@given(names=st.lists(st.text(alphabet="ab./_- 2\u00fc\x1b\u202e", min_size=1, max_size=6), max_size=20))
def test_keys_are_unique_printable_and_without_dots(names: list[str]) -> None:
    keys = Keys()
    made = [keys.take(key_stem(name)) for name in names]
    assert len(set(made)) == len(names)
    assert all(key and key.isprintable() and not set("./") & set(key) for key in made)


def test_names_that_give_one_key_are_numbered() -> None:
    keys = Keys()
    names = ["a.png", "a.jpg", "a-2.png", "a.b.png", "a_b.png", "a.gif"]
    made = [keys.take(key_stem(name)) for name in names]
    assert made == ["a", "a-2", "a-2-2", "a_b", "a_b-2", "a-3"]


def test_names_that_are_no_utf8_get_a_key_that_is() -> None:
    assert key_stem("caf\udce9.png") == "caf?"


def test_accents_of_both_unicode_forms_are_one_key() -> None:
    assert key_stem("e\u0301.png") == key_stem("\u00e9.png") == "\u00e9"
