"""From a sample's number to the sample: find it, read its members, decode."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import unpack_sample
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, FeatureSet
from diffmoe_scale.data.order.order import Order, sample_draws
from diffmoe_scale.data.reading.batch import Failure, Note, Sample
from diffmoe_scale.data.reading.captions import choose
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import BadPicture, Size, decode_image
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES, Span
from diffmoe_scale.unicode import clean_name

LONGEST_CAPTION = 10_000


def chosen_suffix(members: Collection[str], *, has_features: bool) -> str:
    """The member of a sample that is read: of several pictures the first in the list of suffixes; in a set of
    pictures a sample may have features and no picture."""
    return (
        FEATURE_SUFFIX
        if has_features
        else next((suffix for suffix in IMAGE_SUFFIXES if suffix in members), FEATURE_SUFFIX)
    )


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
    features: FeatureSet | None = None
    """What made the shards, where they hold features instead of pictures."""

    @property
    def has_text_features(self) -> bool:
        """Captions come as features from the shards, and no text is read."""
        return self.features is not None and self.features.empty is not None

    def load(self, index: int, size: Size | None = None) -> Sample:
        """Sample number `index` in a size (None: the square of `model.image_size`); one that cannot be used
        comes back with its failure.

        Raises: RuntimeError if a shard was replaced by another during the run.
        """
        try:
            shard, row = self.order.locate(index)
        except OSError as error:
            return self._failed(index, f"sample {index}", "read", error)
        name = clean_name(self.catalog.paths[shard].name)
        try:
            shard_index = self.catalog.index(shard)
        except OSError as error:
            return self._failed(index, f"{name}/row {row}", "read", error)
        members = shard_index.members(row)
        key = clean_name(f"{name}/{shard_index.key(row)}")
        draws = sample_draws(self.seed, index)
        is_dropped = self.is_augmented and draws.dropout < self.config.caption_dropout
        is_flipped = self.is_augmented and self.config.horizontal_flip and draws.flip < 0.5
        suffix = chosen_suffix(members, has_features=self.features is not None)
        if suffix not in members:
            missing = ValueError(f"no member .{suffix}; the sample has {', '.join(sorted(members))}")
            return self._failed(index, key, "features", missing)
        oddities: set[str] = set()
        try:
            data = self.files.read(shard, members[suffix])
            is_read = self.model.conditioning == "text" and not self.has_text_features
            read = partial(self.files.captions, shard, members, self.config.caption_weights)
            captions = read(notes=oddities) if is_read else []
            label = self._label(shard, members) if self.model.conditioning == "class" else -1
        except OSError as error:
            return self._failed(index, key, "read", error)
        except ValueError as error:
            return self._failed(index, key, "label", error)
        picture = latents = None
        wanted = size or Size(self.model.image_size, self.model.image_size)
        weights, stored = [weight for _, weight in captions], None
        try:
            if self.features is None:
                picture = decode_image(
                    data,
                    size=wanted,
                    background=self.config.background,
                    is_flipped=is_flipped,
                    oddities=oddities,
                )
            else:
                found = unpack_sample(data, self.features.source, wanted)
                latents = found.latents(int(is_flipped))
                if self.has_text_features:
                    weights, stored = found.caption_weights(), found
        except BadPicture as error:
            return self._failed(index, key, error.kind, error)
        except Exception as error:
            # Pillow raises a dozen types for broken data, among them SyntaxError and struct.error; features
            # KeyError and two more.
            return self._failed(index, key, "corrupt" if self.features is None else "features", error)
        notes = tuple(Note(kind, key) for kind in sorted(oddities))
        slot = partial(Sample, index, key, picture, latents=latents)
        if self.model.conditioning == "class":
            return slot(
                notes=notes, label=self.model.num_classes if is_dropped else label, is_dropped=is_dropped
            )
        if is_dropped or not weights:
            return slot(notes=notes, is_dropped=True, is_uncaptioned=not weights)
        choice = choose(weights, draws.caption) if self.is_augmented else 0
        if stored is not None:
            return slot(notes=notes, text=stored.caption(choice))
        caption = captions[choice][0]
        if len(caption) > LONGEST_CAPTION:
            notes += (Note("long_caption", f"{key}: {len(caption)} characters, cut to {LONGEST_CAPTION}"),)
        return slot(notes=notes, caption=caption[:LONGEST_CAPTION])

    def take_retries(self) -> list[str]:
        """What was tried again since the last call, in this process."""
        remote = self.catalog.remote
        if remote is None:
            return []
        retried, remote.retried = remote.retried, []
        return retried

    def _label(self, shard: int, members: dict[str, Span]) -> int:
        if "cls" not in members:
            raise ValueError(f"no member .cls; the sample has {', '.join(sorted(members))}")
        text = self.files.read(shard, members["cls"]).decode("ascii", "replace").strip()
        if not text.isdecimal() or int(text) >= self.model.num_classes:
            raise ValueError(
                f"label {text!r}; expected 0 to {self.model.num_classes - 1} (model.num_classes)"
            )
        return int(text)

    def _failed(self, index: int, key: str, kind: str, error: Exception) -> Sample:
        failure = Failure(kind=kind, key=key, reason=f"{type(error).__name__}: {clean_name(str(error))}")
        return Sample(
            index,
            key,
            None,
            label=self.model.num_classes if self.model.conditioning == "class" else -1,
            is_dropped=True,
            failure=failure,
        )
