"""Writes images with captions as WebDataset shards: KEY.<image suffix>, KEY.txt (caption), KEY.json (what
else is known)."""

import argparse
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from diffmoe_scale.data.reading.pictures import flatten, open_image
from diffmoe_scale.data.reading.source import caption_texts
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES
from diffmoe_scale.files import replace_file
from diffmoe_scale.prepare.duplicates import find_duplicates, look_of
from diffmoe_scale.prepare.entries import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    NAMED,
    Entry,
    FilePlace,
    find_entries,
    suffix_of,
)
from diffmoe_scale.prepare.publish import begin, publish, run_tool, to_json, unfinished_folder, write_shard

MANIFEST = "shards.json"
LOOKED_TOGETHER = 1000
READ_TOGETHER = 64
WHITE = (255, 255, 255)
NO_HASH = -1
OPTIONS = (
    "require_captions",
    "validation",
    "samples_per_shard",
    "resize",
    "min_size",
    "max_aspect",
    "duplicates",
)


@dataclass(frozen=True)
class Rules:
    """What a picture must be to be kept."""

    is_caption_required: bool
    min_size: int
    max_aspect: float
    is_hashed: bool


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="prepare_shards",
        description=f"{__doc__} Broken images are left out and named. The same command again goes on where it was stopped.",
    )
    add = parser.add_argument
    source = (
        'folder of images (hidden files do not count), each with NAME.txt or NAME.json ("caption") beside it; or a .csv, .tsv, .jsonl or .parquet '
        "table of image paths, relative to its folder, and captions; or .tar or .parquet files of images; or a folder that img2dataset wrote"
    )
    add("--input", type=Path, required=True, help=source)
    add("--output", type=Path, required=True, help="folder to make, of train-*.tar and validation-*.tar")
    add(
        "--image-column",
        default="",
        help=f"image paths in a table (default: the first there is of {', '.join(IMAGE_COLUMNS)})",
    )
    add(
        "--caption-column",
        default="",
        help=f"captions in a table (default: the first there is of {', '.join(CAPTION_COLUMNS)})",
    )
    add(
        "--require-captions",
        action="store_true",
        help="leave out images without a caption (default: keep them with an empty one)",
    )
    add(
        "--min-size",
        type=int,
        default=0,
        help="leave out images with a side below this many pixels (default: 0)",
    )
    add(
        "--max-aspect",
        type=float,
        default=0.0,
        help="leave out images with a side more than this many times the other (default: 0, off)",
    )
    duplicates = "leave out images whose perceptual hash (64 bits) is within this distance of an earlier one's; 0: equal (default: -1, off)"
    add("--duplicates", type=int, default=-1, help=duplicates)
    add(
        "--validation",
        type=float,
        default=0.0,
        help="share of images for validation-*.tar, drawn by a hash of their names (default: 0)",
    )
    add("--samples-per-shard", type=int, default=2000, help="images a shard (default: 2000)")
    add(
        "--resize",
        type=int,
        default=0,
        help="shrink shorter sides to this many pixels, as JPEG or PNG (default: 0, keep the original bytes)",
    )
    add("--workers", type=int, default=os.cpu_count(), help="threads that decode (default: all cores)")
    add("--overwrite", action="store_true", help="replace the shards of an earlier call")
    parsed = parser.parse_args(arguments)
    try:
        return prepare_shards(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def prepare_shards(parsed: argparse.Namespace) -> int:
    """Write the shards. The folder appears only when complete; an interrupted call leaves what it has done in
    OUTPUT.unfinished."""
    _check(parsed)
    entries = find_entries(
        parsed.input, image_column=parsed.image_column, caption_column=parsed.caption_column
    )
    if not any(map(_is_captioned, entries)):
        raise ValueError(
            f"none of {len(entries)} images has a caption, the first is {entries[0].name!r}; --help says where captions are looked for"
        )
    made_with = {"input": str(parsed.input), "images": digest_of(entries)} | {
        name: getattr(parsed, name) for name in OPTIONS
    }
    folder = begin(parsed.output, manifest=MANIFEST, made_with=made_with, is_overwritten=parsed.overwrite)
    if folder is None:
        print(f"{parsed.output}: these shards are there already")
        return 0
    with ThreadPoolExecutor(parsed.workers) as pool:  # Pillow decodes without the interpreter lock
        looks = look_at_images(folder / "looks", entries, parsed, pool)
        leave_out_duplicates(looks, entries, max_distance=parsed.duplicates)
        kept = [(entry, look) for entry, look in zip(entries, looks, strict=True) if "problem" not in look]
        skipped = [str(look["problem"]) for look in looks if "problem" in look]
        splits = split_images([entry for entry, _ in kept], parsed.validation)
        if not splits["train"]:
            shutil.rmtree(folder)
            raise ValueError(
                f"none of {len(entries)} images is left for training; left out: {'; '.join(skipped[:3]) or 'none'}"
            )
        write_shards(folder, splits, parsed, pool)
    counts = {split: len(samples) for split, samples in splits.items()} | {
        "uncaptioned": sum(look["captions"] == 0 for _, look in kept)
    }
    left_out = dict(Counter(str(look["kind"]) for look in looks if "problem" in look).most_common())
    replace_file(
        folder / MANIFEST, to_json(made_with | {"samples": counts, "left_out": left_out, "skipped": skipped})
    )
    shutil.rmtree(folder / "looks")
    publish(parsed.output)
    print(
        f"{parsed.output}: {counts['train']} training and {counts['validation']} validation samples, {counts['uncaptioned']} without a caption"
    )
    if skipped:
        more = f"\n  and {len(skipped) - NAMED} more, see {MANIFEST}" if len(skipped) > NAMED else ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        print(
            "\n  ".join([f"left out {len(skipped)} of {len(entries)} images ({kinds}):", *skipped[:NAMED]])
            + more
        )
    return 0


def digest_of(entries: Sequence[Entry]) -> str:
    """Of what the images are called: whether a second call has the same ones."""
    digest = blake2b(digest_size=8)
    for entry in entries:
        digest.update(f"{entry.name}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def look_at_images(
    folder: Path, entries: Sequence[Entry], parsed: argparse.Namespace, pool: Executor
) -> list[dict[str, object]]:
    """What `look` finds of each image; kept in files, so that a second call does not decode again."""
    rules = Rules(
        parsed.require_captions, parsed.min_size, parsed.max_aspect, is_hashed=parsed.duplicates >= 0
    )
    folder.mkdir(exist_ok=True)
    looks: list[dict[str, object]] = []
    with tqdm(total=len(entries), unit="image", desc="looking", disable=None) as progress:
        for first in range(0, len(entries), LOOKED_TOGETHER):
            part = entries[first : first + LOOKED_TOGETHER]
            file = folder / f"{first:09d}.json"
            if not file.is_file():
                found = []
                for one in pool.map(partial(look, rules=rules), part):
                    found.append(one)
                    progress.update()
                replace_file(file, json.dumps(found).encode())
            else:
                progress.update(len(part))
            looks += json.loads(file.read_text())
    return looks


def look(entry: Entry, *, rules: Rules) -> dict[str, object]:
    """`captions` (their number), `hash` and `color` of a good image; `kind` and `problem` of another."""
    try:
        if isinstance(entry.image, FilePlace) and suffix_of(entry.name) not in IMAGE_SUFFIXES:
            raise ValueError(f"expected one of the suffixes {', '.join(IMAGE_SUFFIXES)}")
        image = open_image(entry.image.read())
        texts = caption_texts(entry.read_record().get("caption"))
    except Exception as error:
        # As in training: Pillow raises a dozen types for broken data.
        return {"kind": "broken", "problem": f"{entry.name!r}: {type(error).__name__}: {error}"}
    short, long = sorted(image.size)
    if rules.is_caption_required and not texts:
        return {"kind": "without caption", "problem": f"{entry.name!r}: no caption"}
    if short < rules.min_size:
        return {
            "kind": "too small",
            "problem": f"{entry.name!r}: {image.width} x {image.height} pixels; --min-size is {rules.min_size}",
        }
    if 0 < rules.max_aspect * short < long:
        return {
            "kind": "too long",
            "problem": f"{entry.name!r}: {image.width} x {image.height} pixels; --max-aspect is {rules.max_aspect:g}",
        }
    code, color = look_of(flatten(image, WHITE)) if rules.is_hashed else (NO_HASH, (0, 0, 0))
    return {"captions": len(texts), "hash": code, "color": color}


def leave_out_duplicates(
    looks: list[dict[str, object]], entries: Sequence[Entry], *, max_distance: int
) -> None:
    """Mark the images that look like an earlier one."""
    if max_distance < 0:
        return
    good = [number for number, one in enumerate(looks) if "problem" not in one]
    firsts = find_duplicates(
        ((looks[number]["hash"], tuple(looks[number]["color"])) for number in good), max_distance=max_distance
    )  # type: ignore[arg-type,misc]  # JSON
    for number, first in zip(good, firsts, strict=True):
        if good[first] != number:
            looks[number] = {
                "kind": "duplicate",
                "problem": f"{entries[number].name!r}: looks like {entries[good[first]].name!r}",
            }


def split_images(entries: Sequence[Entry], validation: float) -> dict[str, list[tuple[str, Entry]]]:
    """Keys and entries by split."""
    splits: dict[str, list[tuple[str, Entry]]] = {"train": [], "validation": []}
    keys: set[str] = set()
    for entry in entries:
        stem = key_stem(entry.name)
        splits["validation" if _fraction(stem) < validation else "train"].append(
            (unique_key(stem, keys), entry)
        )
    return splits


def write_shards(
    folder: Path, splits: dict[str, list[tuple[str, Entry]]], parsed: argparse.Namespace, pool: Executor
) -> None:
    """The shards that are not there yet."""
    with tqdm(total=sum(map(len, splits.values())), unit="image", desc="writing", disable=None) as progress:
        for split, samples in splits.items():
            for number, first in enumerate(range(0, len(samples), parsed.samples_per_shard)):
                part = samples[first : first + parsed.samples_per_shard]
                path = folder / f"{split}-{number:06d}.tar"
                if not path.is_file():
                    write_shard(path, _members(part, parsed.resize, pool))
                progress.update(len(part))


def _members(
    samples: Sequence[tuple[str, Entry]], resize: int, pool: Executor
) -> Iterator[dict[str, object]]:
    for first in range(0, len(samples), READ_TOGETHER):
        part = samples[first : first + READ_TOGETHER]
        for (key, _), members in zip(
            part, pool.map(partial(read_image, resize=resize), [entry for _, entry in part]), strict=True
        ):
            yield {"__key__": key} | members


def read_image(entry: Entry, *, resize: int) -> dict[str, bytes]:
    """The members of a sample that `look` found good. Raises: OSError if it is no longer there."""
    data = entry.image.read()
    record = entry.read_record()
    texts = caption_texts(record.get("caption"))
    image = open_image(data)
    suffix = suffix_of(entry.name)
    if suffix not in IMAGE_SUFFIXES:
        suffix = {"JPEG": "jpg", "JPEG2000": "jp2"}.get(
            kind := str(Image.open(io.BytesIO(data)).format), kind.lower()
        )
    record |= {"original_width": image.width, "original_height": image.height, "source_file": entry.name}
    if 0 < resize < min(image.size):
        suffix, data = shrink(image, resize, is_photograph=suffix in ("jpg", "jpeg", "webp", "jp2"))
    members = {suffix: data, "json": json.dumps(record).encode()}
    # Of several captions training draws one, from the list in KEY.json; KEY.txt would come before it.
    return members if len(texts) > 1 else members | {"txt": "".join(texts).encode("utf-8", "replace")}


def _is_captioned(entry: Entry) -> bool:
    try:
        return bool(caption_texts(entry.read_record().get("caption")))
    except (ValueError, TypeError, OSError):
        # It is left out and named when its turn comes.
        return False


def shrink(image: Image.Image, side: int, *, is_photograph: bool) -> tuple[str, bytes]:
    """Suffix and bytes of a picture with `side` pixels on its shorter side: JPEG where that loses little,
    else PNG."""
    width, height = (round(length * side / min(image.size)) for length in image.size)
    suffix, kind = ("jpg", "JPEG") if is_photograph and image.mode == "RGB" else ("png", "PNG")
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).save(buffer, kind, quality=95)
    return suffix, buffer.getvalue()


def key_stem(name: str) -> str:
    """A path as the key of a sample: without suffix, and without dots, at which webdataset would cut it."""
    stem = re.sub(r"\.[^./\\]*$", "", name)
    return re.sub(r"[./\\\s\x00-\x1f\x7f]+", "_", stem).encode("utf-8", "replace").decode() or "image"


def unique_key(stem: str, keys: set[str]) -> str:
    """The stem, numbered if it is among the keys; adds it to them."""
    key, number = stem, 2
    while key in keys:
        key, number = f"{stem}-{number}", number + 1
    keys.add(key)
    return key


def _fraction(stem: str) -> float:
    """A hash in [0, 1). Of the stem and not of the unique key, so that rows with the same image fall into one
    split."""
    return int.from_bytes(blake2b(stem.encode(), digest_size=6).digest(), "little") / 2**48


def _check(parsed: argparse.Namespace) -> None:
    if not 0 <= parsed.validation < 1:
        raise ValueError(f"--validation is {parsed.validation}; expected a share in [0, 1)")
    for name, least in (("samples_per_shard", 1), ("workers", 1), ("min_size", 0)):
        if getattr(parsed, name) < least:
            raise ValueError(
                f"--{name.replace('_', '-')} is {getattr(parsed, name)}; expected at least {least}"
            )
    if parsed.resize < 0:
        raise ValueError(f"--resize is {parsed.resize}; expected 0 (off) or more")
    if parsed.max_aspect != 0 and parsed.max_aspect < 1:
        raise ValueError(f"--max-aspect is {parsed.max_aspect}; expected 0 (off), or 1 or more")
    if not -1 <= parsed.duplicates <= 16:
        raise ValueError(f"--duplicates is {parsed.duplicates}; expected -1 (off) to 16 bits")
    source, output = parsed.input.resolve(), parsed.output.resolve()
    if output == source or output in source.parents or unfinished_folder(output) in (source, *source.parents):
        raise ValueError(f"--input {parsed.input} lies in --output {parsed.output}; choose another --output")


if __name__ == "__main__":
    run_tool(main)
