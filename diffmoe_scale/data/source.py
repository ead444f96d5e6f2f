"""From a sample's number to the sample: find it, read its members, decode."""

import json
import os
from dataclasses import dataclass

from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.config.train import DataConfig
from diffmoe_scale.data.batch import Failure, Sample
from diffmoe_scale.data.index import IMAGE_SUFFIXES, ShardCatalog, Span
from diffmoe_scale.data.order import Order, sample_draws
from diffmoe_scale.data.recent import RecentlyUsed
from diffmoe_scale.data.transforms import decode_image

OPEN_FILES = 128


def caption_texts(found: object) -> list[str]:
    """The captions in a "caption" field: its text, or the texts of its list; blank ones and what is no text are left out."""
    texts = found if isinstance(found, list) else [found]
    return [stripped for text in texts if isinstance(text, str) and (stripped := text.strip())]


class ShardFiles:
    """Bytes of shards by offset, with the files used last kept open."""

    def __init__(self, catalog: ShardCatalog) -> None:
        self.catalog = catalog
        self._descriptors: RecentlyUsed[int, int] = RecentlyUsed(OPEN_FILES, discard=os.close)

    def read(self, shard: int, span: Span) -> bytes:
        """Raises: OSError, also when the shard has become shorter than its index says."""
        descriptor = self._descriptors.get(shard, self._open)
        data = os.pread(descriptor, span.size, span.offset)
        if len(data) < span.size:
            raise OSError(f"{len(data)} of {span.size} bytes at {span.offset}: the shard was cut off after it was indexed")
        return data

    def captions(self, shard: int, members: dict[str, Span]) -> list[str]:
        """The captions of a sample: its `.txt`, else "caption" (text or list of texts) of its `.json`; [] where there is none."""
        found: object = []
        if "txt" in members:
            found = self.read(shard, members["txt"]).decode("utf-8", "replace")
        elif "json" in members:
            try:
                record = json.loads(self.read(shard, members["json"]))
            except (ValueError, RecursionError):
                record = None
            found = record.get("caption") if isinstance(record, dict) else None
        return caption_texts(found)

    def _open(self, shard: int) -> int:
        return os.open(self.catalog.paths[shard], os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True)
class SampleSource:
    """Decoded samples by number. Pickles without open files, so that reading processes can have a copy."""

    config: DataConfig
    model: ModelConfig
    seed: int
    catalog: ShardCatalog
    files: ShardFiles
    order: Order
    is_augmented: bool
    """Drop captions, choose among several and flip by chance; otherwise none, the first, never."""

    def load(self, index: int) -> Sample:
        """Sample number `index`; one that cannot be used comes back with its failure.

        Raises: RuntimeError if a shard was replaced by another during the run.
        """
        shard, row = self.order.locate(index)
        name = self.catalog.paths[shard].name
        try:
            shard_index = self.catalog.index(shard)
        except OSError as error:
            return self._failed(index, f"{name}/row {row}", "read", error)
        members = shard_index.members(row)
        key = f"{name}/{shard_index.key(row)}"
        draws = sample_draws(self.seed, index)
        is_dropped = self.is_augmented and draws.dropout < self.config.caption_dropout
        is_flipped = self.is_augmented and self.config.horizontal_flip and draws.flip < 0.5
        image_suffix = next(suffix for suffix in IMAGE_SUFFIXES if suffix in members)
        try:
            data = self.files.read(shard, members[image_suffix])
            captions = self.files.captions(shard, members) if self.model.conditioning == "text" else []
            label = self._label(shard, members) if self.model.conditioning == "class" else -1
        except OSError as error:
            return self._failed(index, key, "read", error)
        except ValueError as error:
            return self._failed(index, key, "label", error)
        try:
            image_HWC = decode_image(data, image_size=self.model.image_size, background=self.config.background, is_flipped=is_flipped)
        except Exception as error:
            # Pillow raises a dozen types for broken data, among them SyntaxError and struct.error.
            return self._failed(index, key, "image", error)
        if self.model.conditioning == "class":
            return Sample(index, key, image_HWC, label=self.model.num_classes if is_dropped else label, is_dropped=is_dropped)
        if is_dropped or not captions:
            return Sample(index, key, image_HWC, is_dropped=True, is_uncaptioned=not captions)
        return Sample(index, key, image_HWC, caption=captions[int(draws.caption * len(captions)) if self.is_augmented else 0])

    def _label(self, shard: int, members: dict[str, Span]) -> int:
        if "cls" not in members:
            raise ValueError(f"no member .cls; the sample has {', '.join(sorted(members))}")
        text = self.files.read(shard, members["cls"]).decode("ascii", "replace").strip()
        if not text.isdecimal() or int(text) >= self.model.num_classes:
            raise ValueError(f"label {text!r}; expected 0 to {self.model.num_classes - 1} (model.num_classes)")
        return int(text)

    def _failed(self, index: int, key: str, kind: str, error: Exception) -> Sample:
        failure = Failure(kind=kind, key=key, reason=f"{type(error).__name__}: {error}")
        return Sample(index, key, None, label=self.model.num_classes if self.model.conditioning == "class" else -1, is_dropped=True, failure=failure)
