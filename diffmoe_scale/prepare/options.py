"""Arguments of the preparations."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from diffmoe_scale.config.check import require
from diffmoe_scale.data.features.source import PRECISIONS
from diffmoe_scale.prepare.publish import finished_folder, unfinished_folder
from diffmoe_scale.prepare.space import parse_size


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What prepare_shards makes of what. Raises: ValueError that names the option of the command."""

    input: Path
    """Folder, table, or tar or parquet file."""
    output: Path
    image_column: str = ""
    """Of a table; "" is the first usual name that there is."""
    caption_column: str = ""
    require_captions: bool = False
    min_size: int = 0
    """Pixels of the shorter side."""
    max_aspect: float = 0.0
    """Longer over shorter side; 0 is off."""
    duplicates: int = -1
    """Bits by which the perceptual hashes of duplicates differ at most; -1 is off."""
    validation: float = 0.0
    """Share of the pictures."""
    samples_per_shard: int = 2000
    resize: int = 0
    """Pixels of the shorter side; 0 keeps the original bytes."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that decode."""
    overwrite: bool = False
    classes: str = ""
    """Write labels: "folders" for one class a folder, or a file that lists them; "" writes none."""

    def __post_init__(self) -> None:
        require(0 <= self.validation < 1, "--validation", self.validation, "a share in [0, 1)")
        for name, least in (("samples_per_shard", 1), ("workers", 1), ("min_size", 0)):
            value = getattr(self, name)
            require(value >= least, f"--{name.replace('_', '-')}", value, f"at least {least}")
        require(self.resize >= 0, "--resize", self.resize, "0 (off) or more")
        is_aspect = self.max_aspect == 0 or 1 <= self.max_aspect < math.inf
        require(is_aspect, "--max-aspect", self.max_aspect, "0 (off), or 1 or more")
        require(-1 <= self.duplicates <= 16, "--duplicates", self.duplicates, "-1 (off) to 16 bits")
        require(str(self.output) not in ("", "."), "--output", str(self.output), "a folder to make")
        source, output = self.input.resolve(), self.output.resolve()
        folders = (output, unfinished_folder(output), finished_folder(output))
        if output in (source, *source.parents) or any(folder in source.parents for folder in folders):
            raise ValueError(f"--input {self.input} lies in --output {self.output}; choose another --output")

    def outputs(self) -> list[Path]:
        """Folders that belong to the output, which are no part of the input."""
        return [self.output, unfinished_folder(self.output), finished_folder(self.output)]

    def made_with(self) -> dict[str, object]:
        """The options that the shards depend on."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("input", "output", "workers", "overwrite", "classes")
        }


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What cache_features makes of what. Raises: ValueError that names the option of the command."""

    input: Sequence[str]
    """Shards of pictures: paths, globs, brace lists, URLs."""
    output: Path
    precision: str = "bf16"
    batch: int = 32
    """Pictures that are encoded at once."""
    budget: str = ""
    """Largest size of the output, such as 500G; "" is the free space."""
    dry_run: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(self.batch >= 1, "--batch", self.batch, "at least 1")
        require(self.precision in PRECISIONS, "--precision", self.precision, " or ".join(PRECISIONS))
        require(str(self.output) not in ("", "."), "--output", str(self.output), "a folder to make")
        if self.budget:
            parse_size(self.budget)


Tell = Callable[[str], object]
"""Is given lines for the user."""
