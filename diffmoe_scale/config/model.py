"""Settings of the transformer."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import FREE, Range, Section


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section, name="model"):
    """The diffusion transformer."""

    conditioning: Literal["text", "class"] = "text"
    """`text`: cross-attention to caption tokens in each block; `class`: a label embedding added to the
    timestep's."""
    num_classes: Annotated[int, Range(0, 1_000_000)] = 0
    """Labels, for `class`; label `num_classes` is the null class of guidance."""
    image_size: Annotated[int, Range(1, 16_384)] = 32
    """Height and width of training images in pixels."""
    channels: Annotated[int, Range(1, 1024)] = 3
    """Channels of images or latents."""
    patch_size: Annotated[int, Range(1, 256)] = 4
    """Patch edge in latent pixels."""
    depth: Annotated[int, Range(1, 1000)] = 8
    """Blocks."""
    width: Annotated[int, Range(4, 65_536)] = 160
    """Token width D."""
    heads: Annotated[int, Range(1, 1024)] = 4
    """Attention heads."""
    attention: Literal["cross", "joint"] = "cross"
    """How image tokens attend to text: `cross` after attention among themselves (in class mode that alone);
    `joint` together with text tokens, a second stream with weights of its own in every block (MMDiT)."""
    qk_norm: Literal["none", "rms"] = "none"
    """Normalize the queries and keys of each head (RMSNorm with a learned scale): attention logits stay
    bounded, which bf16 and high learning rates need in large models."""
    positions: Literal["sincos", "rope2d"] = "sincos"
    """How tokens know their places: `sincos` adds a fixed embedding to them; `rope2d` rotates the queries and
    keys of attention among them, half of a head by the column and half by the row (RoPE)."""
    position_size: Annotated[int, Range(0, 16_384)] = 0
    """Size of the pictures by whose tokens places are counted; 0 is `model.image_size`. When training goes on
    at another size, that of before: the same part of a picture keeps its place (interpolated positions)."""
    modulation: Literal["block", "shared"] = "block"
    """What time and condition do to a block (adaLN): by a linear layer of its own (DiT), or by one for all
    blocks and a table of 6 D numbers a block (PixArt-alpha's adaLN-single), which saves 6 D^2 parameters a
    block."""
    feed_forward_ratio: Annotated[float, Range(0, 64, excludes_low=True)] = 4.0
    """Hidden width of dense feed-forward networks over the token width."""
    text_projection: bool = False
    """Normalize each text encoder's tokens and project them to the width of the model, before all blocks;
    what several encoders need."""
    size_conditioning: bool = False
    """Tell the network the original's size, the crop's place and the image's size (SDXL's micro-conditions),
    added to the timestep embedding."""
    time_frequencies: Literal["dit", "diffusers"] = "dit"
    """Frequencies of the timestep's 128 sines and cosines: 10000^(-i/128) (DiT, SiT, the DiffMoE reference),
    or 10000^(-i/127), as DiTTransformer2DModel of diffusers has them."""
    activation_checkpointing: Annotated[Literal["none", "blocks", "experts"], FREE] = "none"
    """What is recomputed in the backward pass instead of being stored: whole blocks, or their feed-forward
    networks (dense and experts) alone."""
    precision: Annotated[Literal["fp32", "bf16"], FREE] = "fp32"
    """Number format of weights and activations; optimizer state is always fp32."""

    def position_grid(self, tokens: int) -> int:
        """Tokens along a side of the grid of `position_size`, where an image of `image_size` has `tokens`."""
        return tokens * (self.position_size or self.image_size) // self.image_size

    def other_places(self, before: "ModelConfig") -> str:
        """That parts of a picture have other places than in the model before; "" if they have not."""
        old, new = before.position_size or before.image_size, self.position_size or self.image_size
        if old == new:
            return ""
        return (
            f"places are counted by the tokens of a picture of {new} x {new} pixels and were by those of "
            f"{old} x {old}; model.position_size={old} keeps them (interpolated positions)"
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.position_size == self.image_size:  # the same model, and the same settings
            object.__setattr__(self, "position_size", 0)
        require(
            self.width % self.heads == 0,
            "model.width",
            self.width,
            f"a multiple of model.heads ({self.heads})",
        )
        require(self.width % 4 == 0, "model.width", self.width, "a multiple of 4 (2-D position embedding)")
        require(
            self.positions != "rope2d" or self.width // self.heads % 4 == 0,
            "model.heads",
            self.heads,
            f"a divisor of model.width ({self.width}) with heads a multiple of 4 wide, for model.positions "
            "'rope2d': pairs of numbers for each of two axes",
        )
        require(
            (self.conditioning == "class") == (self.num_classes > 0),
            "model.num_classes",
            self.num_classes,
            "above 0 exactly when model.conditioning is 'class'",
        )
        require(
            self.attention == "cross" or self.conditioning == "text",
            "model.attention",
            self.attention,
            "'cross': with model.conditioning 'class' there is no text to attend to",
        )
        require(
            self.attention == "cross" or self.text_projection,
            "model.text_projection",
            self.text_projection,
            "true: with model.attention 'joint' text tokens are as wide as the model",
        )
        require(
            self.conditioning == "text" or not self.text_projection,
            "model.text_projection",
            self.text_projection,
            "false: with model.conditioning 'class' no text is read",
        )
