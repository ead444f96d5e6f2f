"""Which text belongs to which picture, by their names."""

import unicodedata
from collections.abc import Iterable, Sequence

from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.walk import PICTURE_SUFFIXES, TEXT_SUFFIXES, suffix_of

ORPHAN = "text without a picture"
AMBIGUOUS = "text that may belong to several pictures"


def pair_texts(names: Sequence[str], *, losses: Losses, prefix: str = "") -> dict[str, list[str]]:
    """The pictures among the names of files, in their order, each with the names of its texts: .txt before
    .json.

    The texts of `a.jpg` are `a.txt` and `a.jpg.txt`, in capitals or not. A text that fits none exactly goes
    to a picture without one whose name differs in capitals or in the Unicode form of its accents, where only
    one text and one picture fit. Texts that stay over are counted in `losses`, with `prefix` before their
    names, as are files of no known kind.
    """
    pairs: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for name in names:
        suffix = suffix_of(name)
        if suffix in PICTURE_SUFFIXES:
            pairs[name] = []
        elif suffix in TEXT_SUFFIXES:
            texts.setdefault(stem_of(name), []).append(name)
        else:
            losses.add("file of no known kind", prefix + name)
    left = {text for several in texts.values() for text in several}
    for picture, own in pairs.items():
        fitting = [*texts.get(stem_of(picture), ()), *texts.get(picture, ())]
        own += sorted(fitting, key=lambda text: _rank(text, picture))
        left -= set(own)
    for kind in TEXT_SUFFIXES:
        rest = sorted(text for text in left if suffix_of(text) == kind)
        without = [
            picture for picture, own in pairs.items() if not any(suffix_of(text) == kind for text in own)
        ]
        _pair_loosely(pairs, rest, without, losses=losses, prefix=prefix)
    return pairs


def _pair_loosely(
    pairs: dict[str, list[str]], texts: Sequence[str], pictures: Iterable[str], *, losses: Losses, prefix: str
) -> None:
    """Give texts of one kind to pictures that have none of it where only one of each fits."""
    fitting: dict[str, set[str]] = {}
    for picture in pictures:
        for key in (stem_of(picture), picture):
            fitting.setdefault(normal_form(key), set()).add(picture)
    wanting: dict[str, list[str]] = {}
    for text in texts:
        for picture in fitting.get(normal_form(stem_of(text)), ()):
            wanting.setdefault(picture, []).append(text)
    for text in texts:
        found = sorted(fitting.get(normal_form(stem_of(text)), ()))
        if not found:
            losses.add(ORPHAN, prefix + text)
        elif len(found) == 1 and len(wanting[found[0]]) == 1:
            own = pairs[found[0]]
            own.append(text)
            own.sort(key=lambda name: _rank(name, found[0]))
        else:
            losses.add(AMBIGUOUS, prefix + text, f"{', '.join(found[:3])}")


def _rank(text: str, picture: str) -> tuple[int, bool, bool, str]:
    """Order of the texts of one picture."""
    kind = suffix_of(text)
    return TEXT_SUFFIXES.index(kind), stem_of(text) == picture, not text.endswith(f".{kind}"), text


def stem_of(name: str) -> str:
    """A path without the suffix of its last part."""
    suffix = suffix_of(name)
    return name[: -len(suffix) - 1] if suffix else name


def normal_form(name: str) -> str:
    """Equal for names that differ in capitals or in the Unicode form of their accents alone."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
