"""What the network sees beside the noisy image and the time: tensors only.

B samples, L text tokens, Z size conditions.
"""

from dataclasses import dataclass

from torch import Tensor

from diffmoe_scale.encoders.text.features import TextFeatures

NUM_SIZE_CONDITIONS = 6
"""Height and width of the original, rows above and columns left of the crop, height and width of the image;
in pixels."""


@dataclass(frozen=True)
class Condition:
    """What a batch is to be pictures of. Captions come as the features of frozen encoders, computed or from a
    cache (`text`), as ids for the encoder that is trained along (`tokens_BL`), or both."""

    labels_B: Tensor | None = None
    """int64, in class mode: the class, `model.num_classes` for none."""
    sizes_BZ: Tensor | None = None
    """float32 [B, NUM_SIZE_CONDITIONS], for `model.size_conditioning`."""
    text: TextFeatures | None = None
    """Streams of the frozen encoders; after `Denoiser.encode` those of all."""
    tokens_BL: Tensor | None = None
    dropped_B: Tensor | None = None
    """Which samples have no caption, for routers that look at it. In class mode the label says it."""

    def unconditional(self, num_classes: int) -> Tensor | None:
        """Which samples have no caption or class, [B]; None: not known. `num_classes` is 0 in text mode."""
        if num_classes == 0 or self.labels_B is None:
            return self.dropped_B
        return self.labels_B == num_classes
