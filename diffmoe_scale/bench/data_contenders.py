"""Readers of the same files, as endless batches: this one, webdataset, and torchvision's ImageFolder."""

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import webdataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from diffmoe_scale.bench.data_files import unpack
from diffmoe_scale.config.data import DataConfig
from diffmoe_scale.config.model import ModelConfig
from diffmoe_scale.data.features.format import SampleFeatures, unpack_sample
from diffmoe_scale.data.features.locate import find_feature_set
from diffmoe_scale.data.features.source import FEATURE_SUFFIX, FeatureSet
from diffmoe_scale.data.features.stack import stack_arrays, stack_captions
from diffmoe_scale.data.reading.build import build_reader
from diffmoe_scale.data.reading.pictures import Size, decode_image
from diffmoe_scale.data.shards.index import IMAGE_SUFFIXES
from diffmoe_scale.data.shards.patterns import expand_patterns

OURS = "this reader"
WHITE = (255, 255, 255)
Members = dict[str, bytes]
"""Of a sample, by suffix."""


def picture_contenders(
    shards: str, folders: Path, *, image_size: int, batch: int
) -> dict[str, Iterator[object]]:
    """Endless batches of pictures with captions, all by the same decoding and cropping."""

    def decode(data: bytes) -> np.ndarray:
        return decode_image(data, size=Size(image_size, image_size), background=WHITE).pixels_HWC

    def picture(sample: Members) -> tuple[np.ndarray, str]:
        data = next(sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample)
        return decode(data), sample.get("txt", b"").decode()

    def collate(samples: list[tuple[np.ndarray, object]]) -> tuple[torch.Tensor, list[object]]:
        pixels_BHWC = torch.from_numpy(np.stack([sample[0] for sample in samples]))
        return pixels_BHWC, [sample[1] for sample in samples]

    unpack(shards, folders)
    dataset = ImageFolder(str(folders), loader=lambda path: decode(Path(path).read_bytes()))
    return {
        OURS: our_batches(shards, image_size=image_size, batch=batch),
        "webdataset": plain_webdataset(shards, picture, collate, batch=batch),
        "ImageFolder": cycle_batches(
            lambda: DataLoader(dataset, batch_size=batch, shuffle=True, collate_fn=collate, drop_last=True)
        ),
    }


def feature_contenders(shards: str, *, batch: int) -> dict[str, Iterator[object]]:
    """Endless batches of latents and padded text features: webdataset with safetensors' and torch's
    functions, and with this reader's.

    Raises: ValueError if the shards hold no features.
    """
    features = find_feature_set(expand_patterns([shards]))
    if features is None:
        raise ValueError(f"--features is {shards!r}; expected shards of tools/cache_features.py")
    return {
        OURS: our_batches(shards, image_size=features.source.image_size, batch=batch),
        "webdataset": plain_webdataset(shards, *_with_torch(features), batch=batch),
        "its tar alone": plain_webdataset(shards, *_with_ours(features), batch=batch),
    }


def _with_torch(features: FeatureSet) -> tuple[Callable[..., object], Callable[..., object]]:
    """How a sample is loaded and samples are stacked by safetensors' and torch's functions."""

    def load(sample: Members) -> dict[str, torch.Tensor]:
        return safetensors.torch.load(sample[FEATURE_SUFFIX])

    def collate(samples: list[dict[str, torch.Tensor]]) -> object:
        latents_BCHW = torch.stack([sample["latents_VCHW"][0] for sample in samples]).bfloat16()
        if not features.empty:
            return latents_BCHW
        firsts = [sample["tokens_LT"][: int(sample["lengths_K"][0])].bfloat16() for sample in samples]
        lengths_B = torch.tensor([len(first) for first in firsts])
        tokens_BLT = pad_sequence(firsts, batch_first=True)
        mask_BL = torch.arange(tokens_BLT.shape[1]) < lengths_B[:, None]
        pooled_BP = torch.stack([sample["pooled_KP"][0] for sample in samples]).bfloat16()
        return latents_BCHW, tokens_BLT, mask_BL, pooled_BP

    return load, collate


def _with_ours(features: FeatureSet) -> tuple[Callable[..., object], Callable[..., object]]:
    """The same by this reader's functions."""
    source = features.source
    size = Size(source.image_size, source.image_size)

    def load(sample: Members) -> SampleFeatures:
        return unpack_sample(sample[FEATURE_SUFFIX], source, size)

    def collate(samples: list[SampleFeatures]) -> object:
        latents = [sample.latents(0).bits_CHW for sample in samples]
        latents_BCHW = stack_arrays(latents, source.latent_shape(size), precision=source.precision)
        if not features.empty:
            return latents_BCHW, None
        captions = [sample.caption(0) for sample in samples]
        return latents_BCHW, stack_captions(captions, precision=source.precision)

    return load, collate


def our_batches(shards: str, *, image_size: int, batch: int) -> Iterator[object]:
    config, model = DataConfig(caption_dropout=0.0), ModelConfig(image_size=image_size)
    reader = build_reader(config, [shards], model=model, seed=0)
    plan = reader.plan(global_batch=batch, micro_batch=batch)
    return reader.batches(plan, plan.position(step=0, samples=0, by_bucket={}), dp_rank=0, dp_size=1)


def plain_webdataset(
    shards: str, load: Callable[..., object], collate: Callable[..., object], *, batch: int
) -> Iterator[object]:
    """With a small shuffle buffer, full before the first round: its training order, as this reader has its
    own."""
    urls = [str(path) for path in expand_patterns([shards])]
    samples = webdataset.WebDataset(urls, shardshuffle=False).shuffle(batch, initial=batch).map(load)
    return iter(samples.batched(batch, collation_fn=collate, partial=False).repeat())


def cycle_batches(make: Callable[[], DataLoader[object]]) -> Iterator[object]:
    return (batch for loader in cycle([make]) for batch in loader())
