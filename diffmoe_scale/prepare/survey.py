"""What a set of shards holds: looked at by samples spread evenly over it."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffmoe_scale.data.features.format import stored_original, unpack_sample
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, FeatureSet
from diffmoe_scale.data.features.stack import stack_arrays
from diffmoe_scale.data.order.order import FixedOrder
from diffmoe_scale.data.reading.captions import clean_captions
from diffmoe_scale.data.reading.files import ShardFiles
from diffmoe_scale.data.reading.pictures import RGB, Size, decode_image, open_image
from diffmoe_scale.data.shards.catalog import ShardCatalog
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES, Span
from diffmoe_scale.prepare.images import unseen_parts
from diffmoe_scale.prepare.losses import Losses
from diffmoe_scale.prepare.prepared import read_class_names
from diffmoe_scale.prepare.publish import read_set_manifest
from diffmoe_scale.prepare.texts import parse_record
from diffmoe_scale.prepare.walk import TEXT_SUFFIXES
from diffmoe_scale.unicode import TEXT_NOTES, decode_text

SHOWN = 24
LONGEST_LABEL = 20
SHOWN_SIZE = Size(128, 128)
SHOWN_BEHIND: RGB = (255, 255, 255)


@dataclass
class Survey:
    """`looked` of the `samples` in the set were read; lists hold a number for each of those (for each
    caption), as far as they are good."""

    samples: int
    shards: int
    size_bytes: int
    lost: Losses
    """Broken members of the tar files by kind, of the whole set."""
    duplicate_keys: int
    """Samples whose key another one has too, of the whole set."""
    features: FeatureSet | None
    looked: int = 0
    members: Counter[str] = field(default_factory=Counter)
    """Samples by the suffixes of their members."""
    broken: Losses = field(default_factory=Losses)
    """Pictures (or features) that cannot be used by the type of error."""
    texts: Losses = field(default_factory=Losses)
    """What was found about the bytes of texts."""
    unseen: Losses = field(default_factory=Losses)
    """What good pictures hold that training passes over."""
    left_out: dict[str, Losses] = field(default_factory=dict)
    """What the tool that made the shards left out, by the file that says so."""
    uncaptioned: int = 0
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    """Samples by the label in their .cls."""
    class_names: Mapping[int, str] = field(default_factory=dict)
    """By label, where the tool that made the shards says."""
    text_tokens: list[int] = field(default_factory=list)
    """Stored tokens a caption, of sets with features of captions."""
    shown: list[tuple[np.ndarray, str]] = field(default_factory=list)
    """Some pictures (uint8 [H, W, 3]) with their captions; the first three channels of latents."""

    def aspects(self) -> list[float]:
        """Width over height."""
        return [width / height for width, height in zip(self.widths, self.heights, strict=True)]


def survey_shards(
    catalog: ShardCatalog, *, limit: int, caption_weights: Mapping[str, float]
) -> tuple[Survey, Iterator[None]]:
    """A survey that each step of the iterator extends by one of at most `limit` samples.

    `caption_weights` are those of training: they say where captions are looked for.
    """
    keys = np.concatenate([catalog.index(shard).keys for shard, count in enumerate(catalog.counts) if count])
    _, repeats = np.unique(keys, return_counts=True)
    survey = Survey(
        samples=sum(catalog.counts),
        shards=len(catalog.paths),
        size_bytes=sum(catalog.sizes),
        lost=_problems(catalog),
        duplicate_keys=int(repeats[repeats > 1].sum()),
        features=find_feature_set(catalog.paths),
        left_out=_read_left_out({path.parent for path in catalog.paths}),
        class_names=_read_class_names({path.parent for path in catalog.paths}),
    )
    return survey, _look(survey, catalog, min(limit, survey.samples), caption_weights)


def _problems(catalog: ShardCatalog) -> Losses:
    """What indexing the shards found, and shards without a sample."""
    losses = Losses()
    for shard, path in enumerate(catalog.paths):
        for problem in catalog.index(shard).problems:
            losses.add(problem.kind, f"{path.name}: {problem.name}")
        if catalog.counts[shard] == 0:
            losses.add("shard without a sample", path.name)
    return losses


def _read_left_out(folders: Collection[Path]) -> dict[str, Losses]:
    """What the manifests beside the shards say: of prepare_shards and of cache_features."""
    found = {}
    for folder in sorted(folders):
        for name in ("shards.json", "features.json"):
            manifest = read_set_manifest(folder, name) or {}
            losses = Losses()
            for part in ("left_out_names", "unused", "left_out"):
                losses.extend(Losses.from_json(manifest.get(part)))
            if losses.counts:
                found[name if len(folders) == 1 else str(folder / name)] = losses
    return found


def _read_class_names(folders: Collection[Path]) -> dict[int, str]:
    """Names of labels from the manifests of prepare_shards; none where two folders have other ones."""
    names: dict[int, str] = {}
    for folder in sorted(folders):
        found = enumerate(read_class_names(folder))
        if any(names.setdefault(label, name) != name for label, name in found):
            return {}
    return names


def _look(survey: Survey, catalog: ShardCatalog, count: int, weights: Mapping[str, float]) -> Iterator[None]:
    files, order = ShardFiles(catalog), FixedOrder(catalog.counts)
    for step in range(count):
        shard, row = order.locate(step * survey.samples // count)
        index = catalog.index(shard)
        members, key = index.members(row), f"{catalog.paths[shard].name}/{index.key(row)}"
        survey.looked += 1
        survey.members.update(members.keys())
        captions = [text for text, _ in files.captions(shard, members, weights)]
        survey.captions += captions
        survey.uncaptioned += not captions
        is_shown = len(survey.shown) < SHOWN and step * SHOWN >= len(survey.shown) * count
        _look_at_texts(survey, partial(files.read, shard), members, key, weights)
        if "cls" in members:
            _look_at_label(survey, files.read(shard, members["cls"]), key)
        look = _look_at_features if survey.features is not None else _look_at_picture
        try:
            parts = look(survey, partial(files.read, shard), members, (captions or [""])[0], is_shown)
        except Exception as error:
            # Pillow raises a dozen types for broken data; safetensors its own.
            survey.broken.add(type(error).__name__, key, f"{type(error).__name__}: {error}")
        else:
            for part in parts:
                survey.unseen.add(part, key)
        yield


def _look_at_texts(
    survey: Survey,
    read: Callable[[Span], bytes],
    members: dict[str, Span],
    key: str,
    weights: Mapping[str, float],
) -> None:
    """Note what is odd about the bytes of the .txt and the .json, and about the captions in that."""
    for suffix in TEXT_SUFFIXES:
        if suffix not in members:
            continue
        text, notes = decode_text(read(members[suffix]))
        found = set(notes)
        if suffix == "json":
            try:
                record = parse_record(text)
                for name in {"caption", *weights}:
                    clean_captions(record.get(name), found)
            except ValueError as error:
                survey.texts.add("json that is no object", f"{key}.json", str(error))
        for note in sorted(found):
            survey.texts.add(TEXT_NOTES[note], f"{key}.{suffix}")


def _look_at_label(survey: Survey, data: bytes, key: str) -> None:
    text = data[:LONGEST_LABEL].decode("ascii", "replace").strip()
    if text.isdecimal():
        survey.labels[int(text)] += 1
    else:
        survey.broken.add("label that is no number", f"{key}.cls", repr(text))


def _look_at_picture(
    survey: Survey, read: Callable[[Span], bytes], members: dict[str, Span], caption: str, is_shown: bool
) -> list[str]:
    """Adds a picture; returns what training will not see of it."""
    data = read(members[next(suffix for suffix in IMAGE_SUFFIXES if suffix in members)])
    image = open_image(data)
    survey.widths.append(image.width)
    survey.heights.append(image.height)
    if is_shown:
        survey.shown.append(
            (decode_image(data, size=SHOWN_SIZE, background=SHOWN_BEHIND).pixels_HWC, caption)
        )
    return unseen_parts(data)


def _look_at_features(
    survey: Survey, read: Callable[[Span], bytes], members: dict[str, Span], caption: str, is_shown: bool
) -> list[str]:
    """Adds latents."""
    assert survey.features is not None
    data, source = read(members[FEATURE_SUFFIX]), survey.features.source
    size = source.image_size_of(stored_original(data))
    found = unpack_sample(data, source, size)
    latents_CHW = stack_arrays(
        [found.latents(0).bits_CHW], source.latent_shape(size), precision=source.precision
    )[0].float()
    if not latents_CHW.isfinite().all():
        raise ValueError("latents that are not finite")
    if found.streams:
        survey.text_tokens += np.sum([stream.lengths_K for stream in found.streams], axis=0).tolist()
    survey.heights.append(latents_CHW.shape[1])
    survey.widths.append(latents_CHW.shape[2])
    if is_shown:
        # Three deviations on either side of zero.
        pixels_HWC = (latents_CHW[:3] / 3).clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(
            np.resize(pixels_HWC, (*pixels_HWC.shape[:2], 3)) if pixels_HWC.shape[2] < 3 else pixels_HWC
        )
        survey.shown.append((np.asarray(ImageOps.fit(image, SHOWN_SIZE, Image.Resampling.NEAREST)), caption))
    return []
