"""Folders of small pictures with captions, and what a preparation made of them."""

import csv
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffmoe_scale.prepare.options import ShardOptions
from diffmoe_scale.prepare.prepared import SHARDS_FILE, Prepared
from diffmoe_scale.prepare.shards import prepare_shards
from tests.data.samples import encode

Samples = dict[str, dict[str, bytes]]


def add_picture(
    folder: Path,
    name: str,
    *,
    caption: str = "",
    color: tuple[int, int, int] = (1, 2, 3),
    size: tuple[int, int] = (6, 4),
) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Image.registered_extensions()[path.suffix.lower()]
    path.write_bytes(encode(Image.new("RGB", size, color), kind))
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def prepare(source: Path, output: Path, **options: object) -> Prepared:
    """Two threads, and nothing is printed."""
    arguments: dict[str, object] = {"input": source, "output": output, "workers": 2} | options
    settings = ShardOptions(**arguments)  # type: ignore[arg-type]  # of tests
    return prepare_shards(settings, tell=lambda line: None)


def read_samples(output: Path, shards: str = "train-*") -> Samples:
    """Samples by key, from plain tar files."""
    samples: Samples = {}
    for path in sorted(output.glob(f"{shards}.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None and suffix not in samples.setdefault(key, {})
                samples[key][suffix] = file.read()
    return samples


def read_captions(output: Path) -> dict[str, str]:
    """The .txt of each sample by key."""
    return {key: sample["txt"].decode() for key, sample in read_samples(output).items()}


def read_set_manifest(output: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((output / SHARDS_FILE).read_text(encoding="utf-8"))


def write_table(path: Path, rows: Sequence[Mapping[str, object]], *, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path
