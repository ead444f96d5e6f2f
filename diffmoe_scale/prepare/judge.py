"""Which pictures are kept: each is decoded once, what was found is written down for a second call."""

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any  # JSON

from tqdm import tqdm

from diffmoe_scale.data.reading.pictures import flatten, open_image
from diffmoe_scale.files import replace_file
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.prepare.duplicates import find_duplicates, look_of
from diffmoe_scale.prepare.images import suffix_by_format, unseen_parts
from diffmoe_scale.prepare.options import ShardOptions
from diffmoe_scale.prepare.place import Entry
from diffmoe_scale.prepare.texts import BadText, read_known
from diffmoe_scale.unicode import clean_name

LOOKED_TOGETHER = 1000
SHOWN_WHITE = (255, 255, 255)
NO_HASH = -1


@dataclass(frozen=True)
class Look:
    """What was found of one picture; `problem` says why it is left out, `kind` is that in two words."""

    kind: str = ""
    problem: str = ""
    captions: int = 0
    hash: int = NO_HASH
    color: tuple[int, int, int] = (0, 0, 0)
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.kind


def look_at_images(
    folder: Path, entries: Sequence[Entry], options: ShardOptions, pool: Executor
) -> list[Look]:
    """A Look for each picture; kept in files of `folder`, so that a second call does not decode again."""
    folder.mkdir(exist_ok=True)
    looks: list[Look] = []
    with tqdm(total=len(entries), unit="image", desc="looking", disable=None) as progress:
        for first in range(0, len(entries), LOOKED_TOGETHER):
            part = entries[first : first + LOOKED_TOGETHER]
            file = folder / f"{first:09d}.json"
            if not file.is_file():
                found = []
                for one in pool.map(partial(look, options=options), part):
                    found.append(vars(one))
                    progress.update()
                replace_file(file, json.dumps(found).encode())
            else:
                progress.update(len(part))
            looks += [_restore(one) for one in parse_json(file.read_text(encoding="utf-8"))]
    _mark_duplicates(looks, entries, max_distance=options.duplicates)
    return looks


def _restore(stored: dict[str, Any]) -> Look:
    red, green, blue = stored["color"]
    notes = [(kind, detail) for kind, detail in stored["notes"]]
    return Look(**stored | {"color": (red, green, blue), "notes": notes})


def look(entry: Entry, *, options: ShardOptions) -> Look:
    """Decode a picture and read its texts."""
    try:
        data = entry.image.read()
        image = open_image(data)
        suffix_by_format(data)
        known = read_known(entry)
    except OSError as error:
        # Pillow raises OSError for pictures that are cut off, too.
        kind = "broken" if error.errno is None else "unreadable"
        return Look(kind, _problem(error))
    except BadText as error:
        return Look("unreadable caption", clean_name(str(error)))
    except Exception as error:
        # As in training: Pillow raises a dozen types for broken data.
        return Look("broken", _problem(error))
    short, long = sorted(image.size)
    size = f"{image.width} x {image.height} pixels"
    if options.require_captions and not known.captions:
        return Look("without caption", "no caption")
    if short < options.min_size:
        return Look("too small", f"{size}; --min-size is {options.min_size}")
    if 0 < options.max_aspect * short < long:
        return Look("too long", f"{size}; --max-aspect is {options.max_aspect:g}")
    code, color = look_of(flatten(image, SHOWN_WHITE)) if options.duplicates >= 0 else (NO_HASH, (0, 0, 0))
    notes = known.notes + [(kind, "") for kind in unseen_parts(data)]
    return Look(captions=len(known.captions), hash=code, color=color, notes=notes)


def _problem(error: Exception) -> str:
    return f"{type(error).__name__}: {clean_name(str(error))}"


def _mark_duplicates(looks: list[Look], entries: Sequence[Entry], *, max_distance: int) -> None:
    """Mark the pictures that look like an earlier one."""
    if max_distance < 0:
        return
    good = [number for number, one in enumerate(looks) if one.is_good]
    firsts = find_duplicates(
        ((looks[number].hash, looks[number].color) for number in good), max_distance=max_distance
    )
    for number, first in zip(good, firsts, strict=True):
        if good[first] != number:
            looks[number] = Look("duplicate", f"looks like '{clean_name(entries[good[first]].name)}'")
