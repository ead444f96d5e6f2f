"""Writes images with captions as WebDataset shards: KEY.<image suffix>, KEY.txt (caption), KEY.json (what else is known)."""

import argparse
import csv
import io
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import webdataset
from PIL import Image
from tqdm import tqdm

from diffmoe_scale.data.index import IMAGE_SUFFIXES
from diffmoe_scale.data.source import caption_texts
from diffmoe_scale.data.transforms import open_image

MANIFEST = "shards.json"
IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "filepath", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "title", "description")
READ_TOGETHER = 64
NAMED = 10
Record = dict[str, object]


@dataclass(frozen=True)
class Entry:
    """An image as its source names it. `record` is its line of a table; in a folder the files beside the image are read."""

    name: str
    path: Path
    record: Record | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="prepare_shards", description=f"{__doc__} Broken images are left out and named.")
    add = parser.add_argument
    source = 'folder of images (hidden files do not count), each with NAME.txt or NAME.json ("caption") beside it; or a .csv, .tsv or .jsonl table'
    add("--input", type=Path, required=True, help=f"{source} of image paths, relative to its folder, and captions")
    add("--output", type=Path, required=True, help="folder to make, of train-*.tar and validation-*.tar")
    add("--image-column", default="", help=f"image paths in a table (default: the first there is of {', '.join(IMAGE_COLUMNS)})")
    add("--caption-column", default="", help=f"captions in a table (default: the first there is of {', '.join(CAPTION_COLUMNS)})")
    add("--require-captions", action="store_true", help="leave out images without a caption (default: keep them with an empty one)")
    add("--validation", type=float, default=0.0, help="share of images for validation-*.tar, drawn by a hash of their names (default: 0)")
    add("--samples-per-shard", type=int, default=2000, help="images a shard (default: 2000)")
    add("--resize", type=int, default=0, help="shrink shorter sides to this many pixels, as JPEG or PNG (default: 0, keep the original bytes)")
    add("--overwrite", action="store_true", help="replace the shards of an earlier call")
    parsed = parser.parse_args(arguments)
    try:
        return prepare_shards(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def prepare_shards(parsed: argparse.Namespace) -> int:
    """Write the shards. The folder appears only when complete, so an interrupted call leaves none."""
    output = parsed.output.resolve()
    _check(parsed, output)
    entries = find_images(parsed)
    if not any(map(_is_captioned, entries)):
        raise ValueError(f"none of {len(entries)} images has a caption, the first is {entries[0].name!r}; --help says where captions are looked for")
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        counts, skipped = write_shards(unfinished, entries, parsed)
        if counts["train"] == 0:
            raise ValueError(f"none of {len(entries)} images is left for training; left out: {'; '.join(skipped[:3]) or 'none'}")
        (unfinished / MANIFEST).write_text(json.dumps({"input": str(parsed.input), "samples": counts, "skipped": skipped}, indent=1) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.rename(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{parsed.output}: {counts['train']} training and {counts['validation']} validation samples, {counts['uncaptioned']} without a caption")
    if skipped:
        more = f"\n  and {len(skipped) - NAMED} more, see {MANIFEST}" if len(skipped) > NAMED else ""
        print("\n  ".join([f"left out {len(skipped)} of {len(entries)} images:", *skipped[:NAMED]]) + more)
    return 0


def find_images(parsed: argparse.Namespace) -> list[Entry]:
    """The images of a folder, sorted by path, or of a table, line by line. Raises: ValueError if there are none."""
    source: Path = parsed.input
    if source.is_dir():
        paths = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
        visible = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        entries = [Entry(str(path), source / path) for path in visible if _suffix(path) in IMAGE_SUFFIXES]
        others = Counter(path.suffix for path in visible if _suffix(path) not in (*IMAGE_SUFFIXES, "txt", "json"))
        if others:
            print(f"files of no known kind, by suffix: {dict(others.most_common(NAMED))}")
    elif not source.is_file():
        raise ValueError(f"--input {source} does not exist")
    else:
        try:
            entries = list(_read_table(source, parsed.image_column, parsed.caption_column))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{source} cannot be read: {error}; expected a table in UTF-8") from error
    if not entries:
        raise ValueError(f"no image in {source}; expected files {', '.join(IMAGE_SUFFIXES)}")
    return entries


def _read_table(table: Path, image_column: str, caption_column: str) -> Iterator[Entry]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        match _suffix(table):
            case "csv" | "tsv" as suffix:
                rows: Iterator[Record] = csv.DictReader(lines, delimiter="," if suffix == "csv" else "\t", strict=True)  # type: ignore[assignment]  # its values are text
            case "jsonl" | "ndjson":
                rows = (_json_object(line, table) for line in lines if line.strip())
            case _:
                raise ValueError(f"--input {table} is neither a folder nor a .csv, .tsv or .jsonl file")
        for number, row in enumerate(rows, 1):
            if number == 1:
                image_column = _choose_column("image", image_column, IMAGE_COLUMNS, row)
                caption_column = _choose_column("caption", caption_column, CAPTION_COLUMNS, row)
            # In a .csv mostly a comma of a caption without quotes: its first part alone would be trained on.
            if None in row or (None in row.values() and _suffix(table) in ("csv", "tsv")):
                raise ValueError(f"row {number} of {table} has more or fewer values than the header; captions with commas need quotes: {row}")
            name = str(row.get(image_column) or f"row {number}")
            yield Entry(name, table.parent / name, row | {"caption": row.get(caption_column)})


def _json_object(line: str, table: Path) -> Record:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{table} has the line {line.strip()[:80]!r}, which is no JSON object ({error})") from error


def _choose_column(kind: str, wanted: str, usual: Sequence[str], row: Record) -> str:
    for name in [wanted] if wanted else usual:
        if name in row:
            print(f"{kind} column: {name}")
            return name
    raise ValueError(f"no {kind} column {wanted or ' or '.join(usual)}; found {', '.join(map(str, row))}; name one with --{kind}-column")


def try_image(entry: Entry, *, resize: int, is_caption_required: bool) -> dict[str, bytes] | str:
    """The members of a sample, or why there is none."""
    try:
        return read_image(entry, resize=resize, is_caption_required=is_caption_required)
    except Exception as error:
        # As in training: Pillow raises a dozen types for broken data.
        return f"{entry.name!r}: {type(error).__name__}: {error}"


def read_image(entry: Entry, *, resize: int, is_caption_required: bool) -> dict[str, bytes]:
    """The members of a sample. Raises: whatever is raised for an image that training could not use, or an unreadable caption."""
    suffix = _suffix(entry.path)
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(f"expected one of the suffixes {', '.join(IMAGE_SUFFIXES)}")
    data = entry.path.read_bytes()
    image = open_image(data)
    record = read_record(entry)
    texts = caption_texts(record.get("caption"))
    if is_caption_required and not texts:
        raise ValueError("no caption")
    record |= {"original_width": image.width, "original_height": image.height, "source_file": entry.name}
    if 0 < resize < min(image.size):
        suffix, data = shrink(image, resize, is_photograph=suffix in ("jpg", "jpeg", "webp", "jp2"))
    members = {suffix: data, "json": json.dumps(record).encode()}
    # Of several captions training draws one, from the list in KEY.json; KEY.txt would come before it.
    return members if len(texts) > 1 else members | {"txt": "".join(texts).encode("utf-8", "replace")}


def read_record(entry: Entry) -> Record:
    """What is known about an image; "caption" is a text, a list of texts or missing. Raises: ValueError for an unreadable file."""
    if entry.record is not None:
        return dict(entry.record)
    record: Record = {}
    if (beside := entry.path.with_suffix(".json")).is_file():
        record = dict(json.loads(beside.read_text("utf-8-sig")))
    if (beside := entry.path.with_suffix(".txt")).is_file():
        record["caption"] = beside.read_text("utf-8-sig")
    return record


def _is_captioned(entry: Entry) -> bool:
    try:
        return bool(caption_texts(read_record(entry).get("caption")))
    except (ValueError, TypeError, OSError):
        # It is left out and named when its turn comes.
        return False


def shrink(image: Image.Image, side: int, *, is_photograph: bool) -> tuple[str, bytes]:
    """Suffix and bytes of a picture with `side` pixels on its shorter side: JPEG where that loses little, else PNG."""
    width, height = (round(length * side / min(image.size)) for length in image.size)
    suffix, kind = ("jpg", "JPEG") if is_photograph and image.mode == "RGB" else ("png", "PNG")
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).save(buffer, kind, quality=95)
    return suffix, buffer.getvalue()


def write_shards(folder: Path, entries: Sequence[Entry], parsed: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Samples by split and without caption, and what was left out."""
    attempt = partial(try_image, resize=parsed.resize, is_caption_required=parsed.require_captions)
    counts = Counter(train=0, validation=0, uncaptioned=0)
    skipped: list[str] = []
    keys: set[str] = set()
    # Opened at its first sample: a writer without samples leaves an empty shard.
    writers: dict[str, webdataset.ShardWriter] = {}
    with ExitStack() as stack, tqdm(total=len(entries), unit="image", disable=None) as progress:
        # Pillow decodes without the interpreter lock.
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        for chunk in (entries[first : first + READ_TOGETHER] for first in range(0, len(entries), READ_TOGETHER)):
            for entry, members in zip(chunk, pool.map(attempt, chunk), strict=True):
                progress.update()
                if isinstance(members, str):
                    skipped.append(members)
                    continue
                stem = key_stem(entry.name)
                split = "validation" if _fraction(stem) < parsed.validation else "train"
                if split not in writers:
                    pattern = str(folder / split).replace("%", "%%") + "-%06d.tar"
                    writer = webdataset.ShardWriter(pattern, maxcount=parsed.samples_per_shard, encoder=False, mtime=0, verbose=0)
                    writers[split] = stack.enter_context(writer)
                writers[split].write({"__key__": unique_key(stem, keys)} | members)
                counts.update({split: 1, "uncaptioned": members.get("txt") == b""})
    return counts, skipped


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
    """A hash in [0, 1). Of the stem and not of the unique key, so that rows with the same image fall into one split."""
    return int.from_bytes(blake2b(stem.encode(), digest_size=6).digest(), "little") / 2**48


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _check(parsed: argparse.Namespace, output: Path) -> None:
    if not 0 <= parsed.validation < 1:
        raise ValueError(f"--validation is {parsed.validation}; expected a share in [0, 1)")
    if parsed.samples_per_shard < 1:
        raise ValueError(f"--samples-per-shard is {parsed.samples_per_shard}; expected at least 1")
    if parsed.resize < 0:
        raise ValueError(f"--resize is {parsed.resize}; expected 0 (off) or more")
    source = parsed.input.resolve()
    if output == source or output in source.parents:
        raise ValueError(f"--input {parsed.input} lies in --output {parsed.output}; choose another --output")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not (output / MANIFEST).is_file():
            raise ValueError(f"{parsed.output} exists and holds no shards of an earlier call; choose another --output")
        if not parsed.overwrite:
            raise ValueError(f"{parsed.output} holds shards already; choose another --output or give --overwrite")


if __name__ == "__main__":
    sys.exit(main())
