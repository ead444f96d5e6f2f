"""Settings of the transformer."""

from dataclasses import dataclass
from typing import Literal

from diffmoe_scale.config.check import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The diffusion transformer."""

    conditioning: Literal["text", "class"] = "text"
    """`text`: cross-attention to caption tokens in each block; `class`: a label embedding added to the
    timestep's."""
    num_classes: int = 0
    """Labels, for `class`; label `num_classes` is the null class of guidance."""
    image_size: int = 32
    """Height and width of training images in pixels."""
    channels: int = 3
    """Channels of images or latents."""
    patch_size: int = 4
    """Patch edge in latent pixels."""
    depth: int = 8
    """Blocks."""
    width: int = 160
    """Token width D."""
    heads: int = 4
    """Attention heads."""
    feed_forward_ratio: float = 4.0
    """Hidden width of dense feed-forward networks over the token width."""
    size_conditioning: bool = False
    """Tell the network the original's size, the crop's place and the image's size (SDXL's micro-conditions),
    added to the timestep embedding."""
    activation_checkpointing: Literal["none", "blocks", "experts"] = "none"
    """What is recomputed in the backward pass instead of being stored: whole blocks, or their feed-forward
    networks (dense and experts) alone."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and activations; optimizer state is always fp32."""

    def __post_init__(self) -> None:
        for name in ("image_size", "channels", "patch_size", "depth", "width", "heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        require(self.feed_forward_ratio > 0, "model.feed_forward_ratio", self.feed_forward_ratio, "above 0")
        require(
            self.width % self.heads == 0,
            "model.width",
            self.width,
            f"a multiple of model.heads ({self.heads})",
        )
        require(self.width % 4 == 0, "model.width", self.width, "a multiple of 4 (2-D position embedding)")
        require(
            (self.conditioning == "class") == (self.num_classes > 0),
            "model.num_classes",
            self.num_classes,
            "above 0 exactly when model.conditioning is 'class'",
        )
