"""From a sample's number to the sample: find it, read its members, decode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.source import FeatureSet
from diffmoe_scale.data.order.order import Draws, Order, sample_draws
from diffmoe_scale.data.reading.batch import Failure, Note, Sample
from diffmoe_scale.data.reading.captions import choose
from diffmoe_scale.data.reading.decoder import (
    Decoded,
    Decoder,
    FeatureDecoder,
    PictureDecoder,
    chosen_suffix,
)
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import BadPicture, Size
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import Span
from diffmoe_scale.unicode import clean_name
from diffmoe_scale.words import counted

LONGEST_CAPTION = 10_000


class _NoFeatures(ValueError):
    """A sample of a set of features without its own."""


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
    reads_text: bool = False
    """Captions are read beside their features, for an encoder that is trained along."""

    @property
    def has_text_features(self) -> bool:
        """Captions come as features from the shards."""
        return self.features is not None and bool(self.features.empty)

    @cached_property
    def decoder(self) -> Decoder:
        if self.features is None:
            return PictureDecoder(self.config.background)
        return FeatureDecoder(self.features)

    def load(self, index: int, size: Size | None = None) -> Sample:
        """Sample number `index` in a size (None: the square of `model.image_size`); one that cannot be used
        comes back with its failure.

        Raises: RuntimeError if a shard was replaced by another during the run.
        """
        key = f"sample {index}"
        try:
            shard, row = self.order.locate(index)
            name = clean_name(self.catalog.paths[shard].name)
            key = f"{name}/row {row}"
            shard_index = self.catalog.index(shard)
        except OSError as error:
            return self._failed(index, key, "read", error)
        key = clean_name(f"{name}/{shard_index.key(row)}")
        oddities: set[str] = set()
        try:
            data, captions, label = self._read(shard, shard_index.members(row), oddities)
        except OSError as error:
            return self._failed(index, key, "read", error)
        except _NoFeatures as error:
            return self._failed(index, key, "features", ValueError(str(error)))
        except ValueError as error:
            return self._failed(index, key, "label", error)
        draws = sample_draws(self.seed, index)
        is_flipped = self.is_augmented and self.config.horizontal_flip and draws.flip < 0.5
        wanted = size or Size(self.model.image_size, self.model.image_size)
        try:
            decoded = self.decoder.decode(data, wanted, is_flipped=is_flipped, oddities=oddities)
            sample = Sample(index, key, decoded.picture, latents=decoded.latents)
            sample = self._with_condition(sample, decoded, captions, label, draws)
        except BadPicture as error:
            return self._failed(index, key, error.kind, error)
        except Exception as error:  # of a dozen types (PictureDecoder); named by its own, counted and limited
            return self._failed(index, key, self.decoder.failure, error)
        return replace(sample, notes=tuple(Note(kind, key) for kind in sorted(oddities)) + sample.notes)

    def _read(
        self, shard: int, members: dict[str, Span], oddities: set[str]
    ) -> tuple[bytes, list[tuple[str, float]], int]:
        """Bytes of the picture or its features, captions with weights, label. Raises: OSError; _NoFeatures;
        ValueError without a label."""
        suffix = chosen_suffix(members, has_features=self.decoder.has_features)
        if suffix not in members:
            raise _NoFeatures(f"no member .{suffix}; the sample has {', '.join(sorted(members))}")
        data = self.files.read(shard, members[suffix])
        if self.model.conditioning == "class":
            return data, [], self._label(shard, members)
        if self.has_text_features and not self.reads_text:
            return data, [], -1
        weights = self.config.caption_weights
        return data, self.files.captions(shard, members, weights, notes=oddities), -1

    def _with_condition(
        self,
        sample: Sample,
        decoded: Decoded,
        captions: list[tuple[str, float]],
        label: int,
        draws: Draws,
    ) -> Sample:
        """With its label, or with the caption that was drawn. Raises: ValueError for features that are not
        finite."""
        is_dropped = self.is_augmented and draws.dropout < self.config.caption_dropout
        if self.model.conditioning == "class":
            label = self.model.num_classes if is_dropped else label
            return replace(sample, label=label, is_dropped=is_dropped)
        weights = decoded.weights if self.has_text_features else [weight for _, weight in captions]
        if is_dropped or not weights:
            return replace(sample, is_dropped=True, is_uncaptioned=not weights)
        choice = choose(weights, draws.caption) if self.is_augmented else 0
        if self.has_text_features:
            sample = replace(sample, text=decoded.caption(choice))
            if not self.reads_text:
                return sample
            _check_same_captions([weight for _, weight in captions], weights)
        caption = captions[choice][0]
        notes: tuple[Note, ...] = ()
        if len(caption) > LONGEST_CAPTION:
            text = f"{sample.key}: {counted(len(caption), 'character')}, cut to {LONGEST_CAPTION}"
            notes = (Note("long_caption", text),)
        return replace(sample, notes=notes, caption=caption[:LONGEST_CAPTION])

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


def _check_same_captions(found: Sequence[float], cached: Sequence[float]) -> None:
    """Raises: ValueError unless captions stand in the order of those that were cached, by their weights."""
    is_same = len(found) == len(cached)
    if not is_same or (len(found) > 1 and not np.allclose(found, cached, rtol=1e-5)):
        raise ValueError(
            f"captions of weights {list(found)} beside features of captions of weights {list(cached)}; set "
            "data.caption_weights as it was when the features were made"
        )
