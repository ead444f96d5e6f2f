"""Shards of pictures with captions: what tools/prepare_shards.py makes."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from diffmoe_scale.data.reading.pictures import open_image
from diffmoe_scale.files import replace_file
from diffmoe_scale.prepare.classes import Classes, find_classes
from diffmoe_scale.prepare.entries import Listing, list_pictures
from diffmoe_scale.prepare.images import PHOTOGRAPHS, shrink, suffix_by_format
from diffmoe_scale.prepare.judge import Look, look_at_images
from diffmoe_scale.prepare.keys import Keys, fraction, key_stem
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.options import ShardOptions, Tell
from diffmoe_scale.prepare.place import Columns, Entry
from diffmoe_scale.prepare.prepared import SHARDS_FILE, Prepared, read_prepared
from diffmoe_scale.prepare.publish import begin, publish, read_set_manifest, to_json, write_shard
from diffmoe_scale.prepare.tables import json_text
from diffmoe_scale.prepare.texts import read_known
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

SHARDS_FORMAT = 2
"""Of what is written; sets of another one are not gone on with."""
READ_TOGETHER = 64
UNCAPTIONED = "without a caption"
Splits = dict[str, list[tuple[str, Entry]]]


def prepare_shards(options: ShardOptions, *, tell: Tell = print) -> Prepared:
    """Write the shards. The folder appears only when complete; an interrupted call leaves what it has done in
    OUTPUT.unfinished, where the same call goes on.

    Raises: ValueError for input without usable pictures, an output of other files or options; OSError.
    """
    columns = Columns(options.image_column, options.caption_column, tell)
    listing = list_pictures(options.input, columns, excluded=options.outputs())
    classes = None
    if options.classes:
        classes = find_classes(options.classes, options.input, listing, excluded=options.outputs())
    if classes is None and not any(map(_is_captioned, listing.entries)):
        raise ValueError(_no_captions(listing))
    made_with = {"format": SHARDS_FORMAT} | options.made_with()
    made_with["classes"] = None if classes is None else classes.describe()
    if options.resize or options.duplicates >= 0:
        made_with["versions"] = {name: version(name) for name in ("pillow", "imagehash")}
    folder = begin(
        options.output,
        manifest=SHARDS_FILE,
        made_with=made_with,
        sources=listing.sources(),
        is_overwritten=options.overwrite,
    )
    if folder is None:
        return read_prepared(options.output)
    with ThreadPoolExecutor(options.workers) as pool:  # Pillow decodes without the interpreter lock
        looks = look_at_images(folder / "looks", listing.entries, options, pool)
        pairs = list(zip(listing.entries, looks, strict=True))
        good = [entry for entry, look in pairs if look.is_good]
        splits = split_images(good, options.validation, is_mixed=classes is not None)
        prepared = _describe(options, listing, pairs, splits, classes)
        _check_splits(prepared, folder, options)
        _write_shards(folder, splits, options, classes, pool)
    begun = read_set_manifest(folder, SHARDS_FILE) or {}
    replace_file(folder / SHARDS_FILE, to_json(begun | {"input": str(options.input)} | prepared.manifest()))
    shutil.rmtree(folder / "looks")
    publish(options.output)
    return prepared


def _is_captioned(entry: Entry) -> bool:
    try:
        return bool(read_known(entry).captions)
    except (ValueError, OSError):
        # It is left out and named when its turn comes.
        return False


def _no_captions(listing: Listing) -> str:
    unused = "; ".join(line.strip() for line in listing.unused.lines(limit=3))
    return (
        f"none of {counted(len(listing.entries), 'image')} has a caption, "
        f"the first is {clean_name(listing.entries[0].name)!r}; "
        "--help says where captions are looked for" + (f"; not used: {unused}" if unused else "")
    )


def _describe(
    options: ShardOptions,
    listing: Listing,
    pairs: Sequence[tuple[Entry, Look]],
    splits: Splits,
    classes: Classes | None,
) -> Prepared:
    left_out, notes = Losses(), Losses()
    uncaptioned = 0
    for entry, look in pairs:
        if not look.is_good:
            left_out.add(look.kind, f"'{entry.name}'", look.problem)
            continue
        if not look.captions and classes is None:
            uncaptioned += 1
            notes.add(UNCAPTIONED, entry.name)
        for kind, detail in look.notes:
            notes.add(kind, entry.name, detail if detail != entry.name else "")
    counts = {split: len(samples) for split, samples in splits.items()} | {"uncaptioned": uncaptioned}
    prepared = Prepared(options.output, True, len(pairs), counts, left_out, listing.unused, notes)
    if classes is None:
        return prepared
    class_samples = {split: classes.count(entry for _, entry in samples) for split, samples in splits.items()}
    return replace(prepared, class_names=classes.names, class_samples=class_samples)


def _check_splits(prepared: Prepared, folder: Path, options: ShardOptions) -> None:
    """Raises: ValueError where a split that is wanted got no picture."""
    counts = prepared.counts
    problem = ""
    if counts["train"] == 0:
        left_out = [name for names in prepared.left_out.names.values() for name in names]
        problem = (
            f"none of {counted(prepared.images, 'image')} is left for training; "
            f"left out: {'; '.join(left_out[:3]) or 'none'}"
        )
    elif 0 in (samples := prepared.class_samples.get("train", ())):
        label = samples.index(0)
        problem = (
            f"no picture of class {label} ({prepared.class_names[label]}) is left for training; "
            f"left out: {prepared.left_out.summary() or 'none'}"
        )
    elif options.validation > 0 and counts["validation"] == 0:
        problem = (
            f"--validation is {options.validation}, and none of {counted(counts['train'], 'image')} fell "
            "into that share; raise it, or leave it out"
        )
    if problem:
        shutil.rmtree(folder)
        raise ValueError(problem)


def split_images(entries: Sequence[Entry], validation: float, *, is_mixed: bool) -> Splits:
    """Keys and entries by split, in their order or mixed: training shuffles neighbouring shards alone, which
    of pictures sorted by class hold few classes."""
    splits: Splits = {"train": [], "validation": []}
    keys = Keys()
    for entry in entries:
        stem = key_stem(entry.name)
        split = "validation" if fraction(stem) < validation else "train"
        splits[split].append((keys.take(stem), entry))
    if is_mixed:
        for samples in splits.values():
            samples.sort(key=lambda sample: (fraction(sample[0]), sample[0]))
    return splits


def _write_shards(
    folder: Path, splits: Splits, options: ShardOptions, classes: Classes | None, pool: Executor
) -> None:
    """The shards that are not there yet."""
    with tqdm(total=sum(map(len, splits.values())), unit="image", desc="writing", disable=None) as progress:
        for split, samples in splits.items():
            for number, first in enumerate(range(0, len(samples), options.samples_per_shard)):
                part = samples[first : first + options.samples_per_shard]
                path = folder / f"{split}-{number:06d}.tar"
                if not path.is_file():
                    write_shard(path, _members(part, options.resize, classes, pool))
                progress.update(len(part))


def _members(
    samples: Sequence[tuple[str, Entry]], resize: int, classes: Classes | None, pool: Executor
) -> Iterator[dict[str, object]]:
    for first in range(0, len(samples), READ_TOGETHER):
        part = samples[first : first + READ_TOGETHER]
        read = pool.map(partial(read_image, resize=resize), [entry for _, entry in part])
        for (key, entry), members in zip(part, read, strict=True):
            if classes is not None:
                members["cls"] = str(classes.label(entry)).encode()
                members = {suffix: data for suffix, data in members.items() if data}  # no empty caption
            yield {"__key__": key, **members}


def read_image(entry: Entry, *, resize: int) -> dict[str, bytes]:
    """The members of a sample that was found good. Raises: OSError if it is no longer there."""
    data = entry.image.read()
    known = read_known(entry)
    image = open_image(data)
    suffix = suffix_by_format(data)
    record = known.record | {
        "original_width": image.width,
        "original_height": image.height,
        "source_file": clean_name(entry.name),
    }
    if 0 < resize < min(image.size):
        suffix, data = shrink(image, resize, is_photograph=suffix in PHOTOGRAPHS)
    members: dict[str, bytes] = {suffix: data, "json": json_text(record).encode()}
    # Of several captions training draws one, from the list in KEY.json; KEY.txt would come before it.
    if len(known.captions) > 1:
        return members
    return members | {"txt": "".join(known.captions).encode("utf-8", "replace")}
