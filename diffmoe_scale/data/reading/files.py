"""Bytes and captions of shards by offset, with the files used last kept open."""

import os
from collections.abc import Mapping

from diffmoe_scale.data.reading.batch import UNREADABLE_JSON
from diffmoe_scale.data.reading.captions import clean_captions
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import Span
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.recent import RecentlyUsed
from diffmoe_scale.unicode import decode_text

OPEN_FILES = 128


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
            raise OSError(
                f"{len(data)} of {span.size} bytes at {span.offset}: the shard was cut off after it was "
                "indexed"
            )
        return data

    def captions(
        self,
        shard: int,
        members: dict[str, Span],
        weights: Mapping[str, float],
        *,
        notes: set[str] | None = None,
    ) -> list[tuple[str, float]]:
        """Captions with the weights that they are drawn by: the texts of a source share its weight in
        data.caption_weights.

        A source is the `.txt`, or a field of the `.json` with a text or a list of texts; a `.json` that is no
        object has none. `notes` is filled with kinds of batch.NOTES.
        """
        drawn, fallback = (
            [name for name, weight in weights.items() if (weight > 0) == is_drawn]
            for is_drawn in (True, False)
        )
        found = self.texts(shard, members, drawn, notes)
        if found:
            return [(text, weights[name] / len(texts)) for name, texts in found.items() for text in texts]
        # Read only here: most samples do without them.
        return [
            (text, 1.0) for texts in self.texts(shard, members, fallback, notes).values() for text in texts
        ]

    def texts(
        self, shard: int, members: dict[str, Span], names: list[str], notes: set[str] | None = None
    ) -> dict[str, list[str]]:
        """The captions of each source that has any."""
        record: object = None
        kinds: set[str] = set() if notes is None else notes
        if "json" in members and names not in ([], ["txt"]):
            try:
                text, odd = decode_text(self.read(shard, members["json"]))
                kinds |= set(odd)
                record = parse_json(text)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                kinds.add(UNREADABLE_JSON)
        found: dict[str, object] = (
            {name: record.get(name) for name in names} if isinstance(record, dict) else {}
        )
        if "txt" in names:
            data = self.read(shard, members["txt"]) if "txt" in members else b""
            found["txt"], odd = decode_text(data)
            kinds |= set(odd)
        return {name: texts for name, value in found.items() if (texts := clean_captions(value, kinds))}

    def _open(self, shard: int) -> int:
        if self.catalog.is_remote(shard):
            # A removed copy takes its disk space until nobody has it open.
            self._descriptors.discard_if(lambda descriptor: os.fstat(descriptor).st_nlink == 0)
        return self.catalog.open(shard)
