"""What a set of shards holds: looked at by samples spread evenly over it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from PIL import Image, ImageOps

from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.data.features.source import (
    FEATURE_SUFFIX,
    FeatureSet,
    find_feature_set,
    stack_latents,
    stored_original,
    unpack_sample,
)
from diffmoe_scale.data.order.order import FixedOrder
from diffmoe_scale.data.reading.pictures import RGB, Size, decode_image, open_image
from diffmoe_scale.data.reading.source import ShardFiles
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES, ShardCatalog, Span

SHOWN = 24
SHOWN_SIZE = Size(128, 128)
BACKGROUND: RGB = (255, 255, 255)


@dataclass
class Survey:
    """`looked` of the `samples` in the set were read; lists hold a number for each of those (for each
    caption), as far as they are good."""

    samples: int
    shards: int
    size_bytes: int
    lost: dict[str, int]
    """Broken members of the tar files by kind, of the whole set."""
    duplicate_keys: int
    """Samples whose key another one has too, of the whole set."""
    features: FeatureSet | None
    looked: int = 0
    members: Counter[str] = field(default_factory=Counter)
    """Samples by the suffixes of their members."""
    broken: Counter[str] = field(default_factory=Counter)
    """Pictures (or features) that cannot be used by the type of error."""
    broken_keys: list[str] = field(default_factory=list)
    uncaptioned: int = 0
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    text_tokens: list[int] = field(default_factory=list)
    """Stored tokens a caption, of sets with features of captions."""
    shown: list[tuple[np.ndarray, str]] = field(default_factory=list)
    """Some pictures (uint8 [H, W, 3]) with their captions; the first three channels of latents."""


def survey_shards(catalog: ShardCatalog, *, limit: int) -> tuple[Survey, Iterator[None]]:
    """A survey that each step of the iterator extends by one of at most `limit` samples."""
    keys = np.concatenate([catalog.index(shard).keys for shard, count in enumerate(catalog.counts) if count])
    _, repeats = np.unique(keys, return_counts=True)
    survey = Survey(
        samples=sum(catalog.counts),
        shards=len(catalog.paths),
        size_bytes=sum(catalog.sizes),
        lost=dict(catalog.problems),
        duplicate_keys=int(repeats[repeats > 1].sum()),
        features=find_feature_set(catalog.paths),
    )
    return survey, _look(survey, catalog, min(limit, survey.samples))


def _look(survey: Survey, catalog: ShardCatalog, count: int) -> Iterator[None]:
    files, order, weights = ShardFiles(catalog), FixedOrder(catalog.counts), DataConfig().caption_weights
    for step in range(count):
        shard, row = order.locate(step * survey.samples // count)
        index = catalog.index(shard)
        members = index.members(row)
        survey.looked += 1
        survey.members.update(members.keys())
        captions = [text for text, _ in files.captions(shard, members, weights)]
        survey.captions += captions
        survey.uncaptioned += not captions
        is_shown = len(survey.shown) < SHOWN and step * SHOWN >= len(survey.shown) * count
        look = _look_at_features if survey.features is not None else _look_at_picture
        try:
            look(survey, partial(files.read, shard), members, (captions or [""])[0], is_shown)
        except Exception as error:
            # Pillow raises a dozen types for broken data; safetensors its own.
            survey.broken[type(error).__name__] += 1
            survey.broken_keys.append(
                f"{catalog.paths[shard].name}/{index.key(row)}: {type(error).__name__}: {error}"
            )
        yield


def _look_at_picture(
    survey: Survey, read: Callable[[Span], bytes], members: dict[str, Span], caption: str, is_shown: bool
) -> None:
    data = read(members[next(suffix for suffix in IMAGE_SUFFIXES if suffix in members)])
    image = open_image(data)
    survey.widths.append(image.width)
    survey.heights.append(image.height)
    if is_shown:
        survey.shown.append((decode_image(data, size=SHOWN_SIZE, background=BACKGROUND).pixels_HWC, caption))


def _look_at_features(
    survey: Survey, read: Callable[[Span], bytes], members: dict[str, Span], caption: str, is_shown: bool
) -> None:
    assert survey.features is not None
    data, source = read(members[FEATURE_SUFFIX]), survey.features.source
    size = source.image_size_of(stored_original(data))
    found = unpack_sample(data, source, size)
    latents_CHW = stack_latents(
        [found.latents(0).bits_CHW], source.latent_shape(size), precision=source.precision
    )[0].float()
    if not latents_CHW.isfinite().all():
        raise ValueError("latents that are not finite")
    if found.lengths_K is not None:
        survey.text_tokens += found.lengths_K.tolist()
    survey.heights.append(latents_CHW.shape[1])
    survey.widths.append(latents_CHW.shape[2])
    if is_shown:
        # Three deviations on either side of zero.
        pixels_HWC = (latents_CHW[:3] / 3).clamp(-1, 1).add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(
            np.resize(pixels_HWC, (*pixels_HWC.shape[:2], 3)) if pixels_HWC.shape[2] < 3 else pixels_HWC
        )
        survey.shown.append((np.asarray(ImageOps.fit(image, SHOWN_SIZE, Image.Resampling.NEAREST)), caption))
