"""Settings of the autoencoder: pictures to latents and back."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import FREE, PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Section, name="autoencoder"):
    """Where the network's input lives: pixels, or the latents of a pretrained autoencoder."""

    kind: Literal["pixels", "diffusers", "kl"] = "pixels"
    """`pixels`: images in [-1, 1] as they are; `diffusers`: the autoencoder of a local folder, of the class
    that its config.json names; `kl`: the older name of `diffusers`."""
    path: Annotated[str, PATH, FREE] = ""
    """Folder with `config.json` and safetensors weights; for `diffusers` only."""
    normalization: Annotated[Literal["pipeline", "statistics"], FREE] = "pipeline"
    """`pipeline`: latents are shifted and scaled as in diffusers' pipelines; `statistics`: by `latents_mean`
    and `latents_std` alone, as REPA-E's folders of AutoencoderKL are meant."""
    precision: Annotated[Literal["fp32", "bf16"], FREE] = "fp32"
    """Number format of the autoencoder's weights; latents are fp32 in both."""
    tile: Annotated[int, Range(0, 65_536), FREE] = 0
    """Side of the overlapping tiles in which pictures are decoded, in pixels; 0 decodes them whole. Saves
    memory; seams may be seen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "kl":
            object.__setattr__(self, "kind", "diffusers")
        is_folder = self.kind == "diffusers"
        require(
            is_folder == bool(self.path),
            "autoencoder.path",
            self.path,
            "a folder exactly when autoencoder.kind is 'diffusers'",
        )
        for name, default in (("normalization", "pipeline"), ("precision", "fp32"), ("tile", 0)):
            value = getattr(self, name)
            expected = f"{default!r} for autoencoder.kind 'pixels', on which it has no effect"
            require(is_folder or value == default, f"autoencoder.{name}", value, expected)
