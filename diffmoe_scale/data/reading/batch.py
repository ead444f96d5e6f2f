"""What the reader gives to training: one micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffmoe_scale.data.features.format import Latents
from diffmoe_scale.data.features.source import FeatureSet, StoredCaption
from diffmoe_scale.data.features.stack import stack_arrays, stack_captions
from diffmoe_scale.data.reading.pictures import Picture, Size
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.unicode import TEXT_NOTES

GREY = 128
UNREADABLE_JSON = "unreadable_json"
FAILURES = {
    "read": "bytes that could not be read",
    "label": "no usable class label",
    "no_picture": "bytes that are no picture of a kind that is read",
    "bomb": "more pixels than a photograph has",
    "float_pixels": "floating-point pixels",
    "corrupt": "damaged picture",
    "features": "damaged features",
}
"""Kinds of samples that cannot be used, with their meaning."""
NOTES = {
    "caption": "no caption, or an empty one",
    "long_caption": "caption cut: far longer than any text encoder reads",
    UNREADABLE_JSON: ".json that is no JSON object, so without its captions",
    "cmyk": "CMYK, converted",
    "16_bit": "16 bits a channel, converted",
    "palette": "palette, converted",
    "alpha": "transparency, laid over the background colour",
    "rotated": "turned upright by its EXIF mark",
    "retry": "transfer of a remote shard tried again",
    **TEXT_NOTES,
}
"""Kinds of things that are dealt with and do not cost the sample."""


ON_DEVICE = ("pixels_BHWC", "latents_BCHW", "teacher_BNZ")
"""Tensors of a batch that go to the device."""


@dataclass(frozen=True)
class Note:
    """Something that was dealt with: its kind (of NOTES), and whom it concerns."""

    kind: str
    text: str


@dataclass(frozen=True)
class Failure:
    """A sample that could not be used; `kind` is one of FAILURES."""

    kind: str
    key: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """One row of a batch before collation: `picture` or, of a set of features, `latents`; neither when there
    is a failure."""

    index: int
    key: str
    picture: Picture | None
    caption: str = ""
    label: int = -1
    is_dropped: bool = False
    is_uncaptioned: bool = False
    failure: Failure | None = None
    notes: tuple[Note, ...] = ()
    latents: Latents | None = None
    text: tuple[StoredCaption, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a rank. A failed sample keeps its row: grey image (zero latents), no condition,
    weight 0."""

    pixels_BHWC: Tensor | None
    """uint8: a quarter of what the network is given, on the way from reading processes and to the GPU; None
    where the shards hold latents."""
    captions: list[str]
    """"" where the caption is dropped, missing, or the run is conditioned on classes."""
    labels_B: Tensor
    """int64: the class, num_classes where dropped, -1 in a run conditioned on text."""
    weight_B: Tensor
    """float32: 1, or 0 for a row that must not count."""
    dropped_B: Tensor
    """bool: rows without a condition."""
    indices_B: Tensor
    """int64: number of the sample in the run, epoch * samples + position; seeds its random numbers."""
    keys: list[str]
    """"shard file name/key"."""
    failures: list[Failure]
    """Samples of weight 0 that could not be used."""
    uncaptioned: list[str]
    """Keys of samples that have no caption; trained on the empty one."""
    sizes_BZ: Tensor
    """float32: height and width of the original, rows above and columns left of the crop, height and width of
    the image."""
    latents_BCHW: Tensor | None = None
    """bf16, where the shards hold them."""
    text: TextFeatures | None = None
    """bf16, where the shards hold the captions' features."""
    teacher_BNZ: Tensor | None = None
    """bf16: features for alignment, where the shards hold them."""
    notes: list[Note] = field(default_factory=list)

    def count_kinds(self) -> Tensor:
        """float32: how many of each of FAILURES, then of NOTES."""
        found = (
            [failure.kind for failure in self.failures]
            + ["caption"] * len(self.uncaptioned)
            + [note.kind for note in self.notes]
        )
        return torch.tensor([float(found.count(kind)) for kind in (*FAILURES, *NOTES)])

    def pin_memory(self) -> "Batch":
        """The same with its pictures or features in page-locked memory, which a GPU copies from while it
        computes. Called by torch's DataLoader."""
        pinned = {
            name: tensor.pin_memory() for name in ON_DEVICE if (tensor := getattr(self, name)) is not None
        }
        text = None if self.text is None else self.text.map(Tensor.pin_memory)
        return replace(self, **pinned, text=text)

    def to(self, device: torch.device) -> "Batch":
        """The same with its pictures or features on a device; copies from page-locked memory are not waited
        for."""
        moved = {
            name: tensor.to(device, non_blocking=True)
            for name in ON_DEVICE
            if (tensor := getattr(self, name)) is not None
        }
        text = None if self.text is None else self.text.map(partial(_move, device=device))
        return replace(self, **moved, text=text)


def _move(tensor: Tensor, *, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def collate(samples: Sequence[Sample], *, size: Size, features: FeatureSet | None = None) -> Batch:
    """One batch of samples whose images are of one size; of those that come from a set of `features`, the
    latents are."""
    latents_BCHW = text = teacher_BNZ = None
    if features is not None:
        source, empty = features.source, features.stored_empty
        bits = [None if sample.latents is None else sample.latents.bits_CHW for sample in samples]
        latents_BCHW = stack_arrays(bits, source.latent_shape(size), precision=source.precision)
        if source.teacher:
            features_B = [None if sample.latents is None else sample.latents.teacher_NZ for sample in samples]
            teacher_BNZ = stack_arrays(features_B, source.teacher_shape(size), precision=source.precision)
        if empty:
            captions = [sample.text or empty for sample in samples]
            text = stack_captions(captions, precision=source.precision)
    return Batch(
        pixels_BHWC=_stack_pixels(samples, size) if features is None else None,
        captions=[sample.caption for sample in samples],
        labels_B=torch.tensor([sample.label for sample in samples]),
        weight_B=torch.tensor([0.0 if sample.failure else 1.0 for sample in samples]),
        dropped_B=torch.tensor([sample.is_dropped for sample in samples]),
        indices_B=torch.tensor([sample.index for sample in samples]),
        keys=[sample.key for sample in samples],
        failures=[sample.failure for sample in samples if sample.failure],
        uncaptioned=[sample.key for sample in samples if sample.is_uncaptioned],
        sizes_BZ=_stack_sizes(samples, size),
        notes=[note for sample in samples for note in sample.notes],
        latents_BCHW=latents_BCHW,
        text=text,
        teacher_BNZ=teacher_BNZ,
    )


def _stack_pixels(samples: Sequence[Sample], size: Size) -> Tensor:
    pixels_BHWC = np.empty((len(samples), *size, 3), dtype=np.uint8)
    for row, sample in enumerate(samples):
        pixels_BHWC[row] = GREY if sample.picture is None else sample.picture.pixels_HWC
    return torch.from_numpy(pixels_BHWC)


def _stack_sizes(samples: Sequence[Sample], size: Size) -> Tensor:
    found = [sample.picture or sample.latents for sample in samples]
    return torch.tensor(
        [(0.0,) * 6 if one is None else (*one.original, *one.crop, *size) for one in found],
        dtype=torch.float32,
    )


def to_unit_range(pixels_BHWC: Tensor) -> Tensor:
    """uint8 pictures as float32 [B, 3, H, W] in [-1, 1]."""
    return (
        pixels_BHWC.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(127.5)
        .sub_(1)
    )
