"""What a preparation of shards made and what did not get into it: for the terminal and for shards.json."""

import glob
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffmoe_scale.prepare.losses import KEPT_NAMES, Losses
from diffmoe_scale.prepare.publish import read_set_manifest
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

SHARDS_FILE = "shards.json"


@dataclass(frozen=True)
class Prepared:
    """A set of shards, and what did not get into it."""

    output: Path
    is_new: bool
    """False where the same call had made it before."""
    images: int
    """Pictures in the input."""
    counts: Mapping[str, int]
    """Samples: train, validation, and those of both that are uncaptioned."""
    left_out: Losses
    """Pictures that are in no shard."""
    unused: Losses
    """What else was found and not used."""
    notes: Losses
    """What was dealt with in samples that are there."""
    class_names: Sequence[str] = ()
    """By label; empty for a set without labels."""
    class_samples: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Samples of each label, by split; empty for a set without labels."""

    def manifest(self) -> dict[str, object]:
        """Its part of SHARDS_FILE."""
        return {
            "images": self.images,
            "samples": dict(self.counts),
            "left_out": dict(self.left_out.counts.most_common()),
            "left_out_names": self.left_out.to_json(),
            "unused": self.unused.to_json(),
            "notes": self.notes.to_json(),
        } | ({"class_samples": dict(self.class_samples)} if self.class_names else {})

    def lines(self) -> Iterator[str]:
        """What was made, what was not, and what to do next, for a terminal."""
        if not self.is_new:
            yield f"{self.output}: these shards are there already, of the same files and options"
        counts = self.counts
        yield (
            f"{self.output}: {counts['train']} training and {counts['validation']} validation samples, "
            + (self._classes() if self.class_names else f"{counts['uncaptioned']} without a caption")
        )
        if self.left_out.counts:
            total = self.left_out.counts.total()
            yield f"left out {total} of {counted(self.images, 'image')} ({self.left_out.summary()}):"
            yield from self.left_out.lines()
        if self.unused.counts:
            yield f"not used ({self.unused.counts.total():,}):"
            yield from self.unused.lines()
        if self.notes.counts:
            yield f"in these shards, and worth a look ({self.notes.counts.total():,}):"
            yield from self.notes.lines()
        if self.left_out.counts or self.unused.counts or self.notes.counts:
            yield f"more names, up to {KEPT_NAMES:,} of each kind: {self.output / SHARDS_FILE}"
        shown = shlex.quote(f"{glob.escape(str(self.output))}/*.tar")
        yield f"look at them:  python tools/inspect_data.py --input {shown}"
        train = shards_setting("data.train", self.output, "train-*.tar")
        held_out = shards_setting("data.validation", self.output, "validation-*.tar")
        labels = f" model.conditioning=class model.num_classes={len(self.class_names)}"
        yield (
            "train on them: python -m diffmoe_scale.pretrain --config configs/captions_64.yaml"
            f"{labels if self.class_names else ''} {train} "
            f"{held_out + ' ' if counts['validation'] else ''}run.directory=runs/mine"
        )

    def _classes(self) -> str:
        names, samples = self.class_names, self.class_samples["train"]
        return (
            f"{counted(len(names), 'class')} from 0 ({names[0]}) to {len(names) - 1} ({names[-1]}), "
            f"{min(samples)} to {max(samples)} training samples each"
        )


def shards_setting(name: str, folder: Path, pattern: str) -> str:
    """A setting for a shell's command line, whatever signs the folder's name has."""
    path = f"{glob.escape(str(folder))}/{pattern}"
    is_plain = re.fullmatch(r"[\w./*~-]+", path) is not None
    return shlex.quote(f"{name}=[{path if is_plain else json.dumps(path)}]")


def training_settings(folder: Path, names: Sequence[str]) -> str:
    """For the command line: shards of validation by their names are not for training."""
    if not any(name.startswith("validation-") for name in names):
        return shards_setting("data.train", folder, "*.tar")
    parts = [shards_setting("data.validation", folder, "validation-*.tar")]
    if any(name.startswith("train-") for name in names):
        parts.insert(0, shards_setting("data.train", folder, "train-*.tar"))
    return " ".join(parts)


def read_prepared(output: Path) -> Prepared:
    """What a finished set says of itself."""
    manifest = read_set_manifest(output, SHARDS_FILE) or {}
    return Prepared(
        output,
        is_new=False,
        images=int(manifest.get("images", 0)),
        counts={name: int(manifest["samples"][name]) for name in ("train", "validation", "uncaptioned")},
        left_out=Losses.from_json(manifest.get("left_out_names")),
        unused=Losses.from_json(manifest.get("unused")),
        notes=Losses.from_json(manifest.get("notes")),
        class_names=read_class_names(output),
        class_samples=manifest.get("class_samples", {}),
    )


def read_class_names(folder: Path) -> list[str]:
    """Of a set of shards, by label; none for a set without labels, or one that was made by another tool."""
    classes = (read_set_manifest(folder, SHARDS_FILE) or {}).get("classes")
    is_ours = isinstance(classes, list) and all(isinstance(one, dict) and "name" in one for one in classes)
    return [clean_name(str(one["name"])) for one in classes] if is_ours and classes else []
