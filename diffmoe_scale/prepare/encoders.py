"""The networks that features are computed by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe_scale.data.features.format import to_stored
from diffmoe_scale.data.features.source import CaptionFeatures, FeatureSource
from diffmoe_scale.encoders.autoencoder.build import Autoencoder
from diffmoe_scale.encoders.text.features import TextStream
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.encoders.vision.teacher import Teacher


@dataclass(frozen=True)
class Encoders:
    """`text` are the frozen encoders; none in class mode, and where the only one is trained along."""

    autoencoder: Autoencoder
    text: TextEncoders
    device: torch.device
    teacher: Teacher | None = None
    """The encoder of pictures for alignment."""

    def captions(self, texts: Sequence[str], *, precision: str) -> list[tuple[CaptionFeatures, ...]]:
        """Features of each caption by each encoder, cut to its tokens, in the stored format."""
        found = self.text.encode_frozen(list(texts), self.device) if texts else None
        if found is None:
            return []
        streams = [self._cut(stream, precision=precision) for stream in found.streams]
        return list(zip(*streams, strict=True))

    def _cut(self, stream: TextStream, *, precision: str) -> list[CaptionFeatures]:
        lengths = stream.mask_BL.sum(1).tolist()
        tokens = [
            to_stored(tokens_LT[:length], precision)
            for tokens_LT, length in zip(stream.tokens_BLT, lengths, strict=True)
        ]
        if stream.pooled_BV is None:
            return [CaptionFeatures(tokens_LT, None) for tokens_LT in tokens]
        pooled = [to_stored(pooled_P, precision) for pooled_P in stream.pooled_BV]
        return [CaptionFeatures(*pair) for pair in zip(tokens, pooled, strict=True)]

    def views(self, images_BCHW: Tensor, num_views: int) -> Tensor:
        """Latents [B, V, C, H, W] of the images and, for two views, of the mirrored ones."""
        views = [images_BCHW, images_BCHW.flip(-1)][:num_views]
        return torch.stack([self.autoencoder.encode(view.to(self.device)) for view in views], dim=1)

    def teacher_views(
        self, images_BCHW: Tensor, latents_BVCHW: Tensor, source: FeatureSource
    ) -> Sequence[Tensor | None]:
        """For each image the features for alignment [V, N, Z] of its views; None without alignment."""
        if self.teacher is None:
            return [None] * len(images_BCHW)
        grid = latents_BVCHW.shape[3] // source.teacher_patch, latents_BVCHW.shape[4] // source.teacher_patch
        views = [images_BCHW, images_BCHW.flip(-1)][: source.num_views]
        found = [self.teacher.features(view.to(self.device), grid).cpu() for view in views]
        return list(torch.stack(found, dim=1))
