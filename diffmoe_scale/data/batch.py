"""What the reader gives to training: one micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

FAILURES = {
    "read": "bytes that could not be read",
    "label": "no usable class label",
    "no_picture": "bytes that are no picture of a kind that is read",
    "bomb": "more pixels than a photograph has",
    "float_pixels": "floating-point pixels",
    "corrupt": "damaged picture",
}
"""Kinds of samples that cannot be used, with their meaning."""
NOTES = {
    "caption": "no caption, or an empty one",
    "long_caption": "caption cut: far longer than any text encoder reads",
    "cmyk": "CMYK, converted",
    "16_bit": "16 bits a channel, converted",
    "palette": "palette, converted",
    "alpha": "transparency, laid over the background colour",
    "rotated": "turned upright by its EXIF mark",
    "retry": "transfer of a remote shard tried again",
}
"""Kinds of things that are dealt with and do not cost the sample."""


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
    """One slot of a batch before collation; `image_HWC` is uint8 and None exactly when there is a failure."""

    index: int
    key: str
    image_HWC: np.ndarray | None
    caption: str = ""
    label: int = -1
    is_dropped: bool = False
    is_uncaptioned: bool = False
    failure: Failure | None = None
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a rank. A failed sample keeps its slot: zero image, no condition, weight 0."""

    images_BCHW: Tensor
    """float32 in [-1, 1]."""
    captions: list[str]
    """"" where the caption is dropped, missing, or the run is conditioned on classes."""
    labels_B: Tensor
    """int64: the class, num_classes where dropped, -1 in a run conditioned on text."""
    dropped_B: Tensor
    """bool: trained without condition."""
    weight_B: Tensor
    """float32: 1, or 0 for a slot that must not count."""
    indices_B: Tensor
    """int64: number of the sample in the run, epoch * samples + position; the source of its random numbers."""
    keys: list[str]
    """"shard file name/key"."""
    failures: list[Failure]
    """Samples of weight 0 that could not be used."""
    uncaptioned: list[str]
    """Keys of samples that have no caption; trained on the empty one."""
    notes: list[Note] = field(default_factory=list)

    def count_kinds(self) -> Tensor:
        """float32: how many of each of FAILURES, then of NOTES."""
        found = [failure.kind for failure in self.failures] + ["caption"] * len(self.uncaptioned) + [note.kind for note in self.notes]
        return torch.tensor([float(found.count(kind)) for kind in (*FAILURES, *NOTES)])

    def pin_memory(self) -> "Batch":
        """The same with its images in page-locked memory, which a GPU copies from while it computes. Called by torch's DataLoader."""
        return replace(self, images_BCHW=self.images_BCHW.pin_memory())


def collate(samples: Sequence[Sample], *, image_size: int) -> Batch:
    """One batch of samples whose images are image_size x image_size."""
    images_BHWC = np.zeros((len(samples), image_size, image_size, 3), dtype=np.uint8)
    for row, sample in enumerate(samples):
        if sample.image_HWC is not None:
            images_BHWC[row] = sample.image_HWC
    images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
    weight_B = torch.tensor([0.0 if sample.failure else 1.0 for sample in samples])
    images_BCHW[weight_B == 0] = 0
    return Batch(
        images_BCHW=images_BCHW,
        captions=[sample.caption for sample in samples],
        labels_B=torch.tensor([sample.label for sample in samples]),
        dropped_B=torch.tensor([sample.is_dropped for sample in samples]),
        weight_B=weight_B,
        indices_B=torch.tensor([sample.index for sample in samples]),
        keys=[sample.key for sample in samples],
        failures=[sample.failure for sample in samples if sample.failure],
        uncaptioned=[sample.key for sample in samples if sample.is_uncaptioned],
        notes=[note for sample in samples for note in sample.notes],
    )
