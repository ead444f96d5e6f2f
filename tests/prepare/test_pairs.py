import unicodedata

import pytest

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.pairs import AMBIGUOUS, ORPHAN, pair_texts


def pair(*names: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    losses = Losses()
    return pair_texts(names, losses=losses), losses.names


NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        ("a.jpg", "a.txt"),
        ("IMG_1.JPG", "IMG_1.TXT"),
        ("a.jpg", "a.jpg.txt"),
        ("a.jpg", "a.JSON"),
        ("v1.0.png", "v1.0.txt"),
        ("deep/a.jpg", "deep/A.txt"),
        ("a.JPG", "a.jpg.txt"),
        (f"{NFC}.jpg", f"{NFD}.txt"),
        (f"{NFD}.jpg", f"{NFC}.jpg.txt"),
        ("Straße.png", "STRASSE.TXT"),
    ],
)
def test_a_text_finds_its_picture(picture: str, text: str) -> None:
    assert pair(picture, text) == ({picture: [text]}, {})
    assert pair(text, picture, "other.png") == ({picture: [text], "other.png": []}, {})


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["a.jpg", "b.txt"], {ORPHAN: ["b.txt"]}),
        (["one/a.jpg", "two/a.txt"], {ORPHAN: ["two/a.txt"]}),
        (["a.jpg", "a.bmp.txt"], {ORPHAN: ["a.bmp.txt"]}),
        (["A.jpg", "a.png", "á.txt"], {ORPHAN: ["á.txt"]}),
        (["Ab.jpg", "aB.png", "ab.txt"], {AMBIGUOUS: ["ab.txt: Ab.jpg, aB.png"]}),
        (["ab.jpg", "Ab.txt", "aB.txt"], {AMBIGUOUS: ["Ab.txt: ab.jpg", "aB.txt: ab.jpg"]}),
        (["a.jpg", "a.heic"], {"file of no known kind": ["a.heic"]}),
    ],
)
def test_what_belongs_to_none_or_to_several_is_named(names: list[str], left: dict[str, list[str]]) -> None:
    pairs, found = pair(*names)
    assert found == left and not any(pairs.values())


def test_pictures_of_one_name_share_its_text_and_the_exact_one_goes_before_others() -> None:
    assert pair("a.jpg", "a.png", "a.txt") == ({"a.jpg": ["a.txt"], "a.png": ["a.txt"]}, {})
    assert pair("A.jpg", "a.png", "a.txt") == ({"A.jpg": [], "a.png": ["a.txt"]}, {})
    assert pair("a.jpg", "a.json", "a.TXT", "a.jpg.txt", "a.txt") == (
        {"a.jpg": ["a.txt", "a.TXT", "a.jpg.txt", "a.json"]},
        {},
    )
