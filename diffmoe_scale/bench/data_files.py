"""Files that are made to be read: shards of pictures, shards of features, and pictures in folders."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffmoe_scale.data.features.format import pack_sample
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, CaptionFeatures, FeatureSet, FeatureSource
from diffmoe_scale.data.reading.pictures import Size
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES
from diffmoe_scale.data.shards.patterns import expand_patterns
from diffmoe_scale.prepare.publish import write_shard

SHARDS = 4
LATENT_CHANNELS, LATENT_FACTOR, IMAGE_SIZE = 4, 8, 256
CAPTION_TOKENS, TEXT_WIDTH = 20, 768
JPEG_QUALITY = 90


def make_pictures(folder: Path, *, count: int, size: int) -> str:
    """Shards of JPEG files about as large and as hard to decode as photographs. Returns their pattern."""
    random = np.random.default_rng(0)
    return _write_shards(folder, count, "jpg", lambda: _jpeg(random, size))


def make_features(folder: Path, *, count: int) -> str:
    """Shards of random features, with the set that they belong to. Returns their pattern."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    empty = CaptionFeatures(draw(2, TEXT_WIDTH).bfloat16(), draw(TEXT_WIDTH).bfloat16())
    source = FeatureSource(
        autoencoder="made",
        text="made",
        channels=LATENT_CHANNELS,
        factor=LATENT_FACTOR,
        image_size=IMAGE_SIZE,
        aspects=(),
        step=0,
        num_views=1,
        precision="bf16",
    )
    size = Size(IMAGE_SIZE, IMAGE_SIZE)

    def pack() -> bytes:
        caption = CaptionFeatures(draw(CAPTION_TOKENS, TEXT_WIDTH), draw(TEXT_WIDTH))
        latents_VCHW = draw(1, *source.latent_shape(size))
        return pack_sample(
            latents_VCHW, [(caption,)], [1.0], original=size, crop=(0, 0), precision=source.precision
        )

    folder.mkdir(parents=True)
    FeatureSet(source, (empty,)).save(folder)
    return _write_shards(folder, count, FEATURE_SUFFIX, pack)


def unpack(shards: str, folder: Path) -> None:
    """The pictures of shards as files in FOLDER/SHARD, as torchvision reads them."""
    for path in expand_patterns([shards]):
        (folder / path.stem).mkdir(parents=True)
        with tarfile.open(path) as archive:
            for member in archive:
                is_picture = member.name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
                if is_picture and (file := archive.extractfile(member)):
                    (folder / path.stem / member.name.replace("/", "_")).write_bytes(file.read())


def _write_shards(folder: Path, count: int, suffix: str, make: Callable[[], bytes]) -> str:
    """At least `count` samples, equally many a shard. Returns the pattern of the shards."""
    folder.mkdir(parents=True, exist_ok=True)

    def samples(shard: int) -> Iterator[dict[str, str | bytes]]:
        for row in range(-(-count // SHARDS)):
            caption = f"caption {row} of shard {shard}".encode()
            yield {"__key__": f"{shard}_{row:06d}", suffix: make(), "txt": caption}

    for shard in range(SHARDS):
        write_shard(folder / f"train-{shard:06d}.tar", samples(shard))
    return f"{folder}/train-*.tar"


def _jpeg(random: np.random.Generator, size: int) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    noise_HWC = random.integers(-12, 13, (size, size, 3))
    smooth_HWC = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    buffer = io.BytesIO()
    pixels_HWC = (smooth_HWC + noise_HWC).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
