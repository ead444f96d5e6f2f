"""Settings of representation alignment."""

from dataclasses import dataclass
from typing import Annotated, Literal

from diffmoe_scale.config.section import PATH, Range, Section


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(Section, name="alignment", is_free=True):
    """Representation alignment (REPA, arXiv 2410.06940): a block's tokens learn to say what a frozen encoder
    of pictures says of the clean picture."""

    encoder: Annotated[str, PATH] = ""
    """Folder of a DINOv2 or DINOv3 model as transformers writes it; empty is no alignment."""
    weight: Annotated[float, Range(0, 1000)] = 0.5
    """Weight of the loss, minus the mean cosine over tokens."""
    block: Annotated[int, Range(1, 1000)] = 8
    """The block whose output is aligned; 1 is the first."""
    end_step: Annotated[int, Range(0, 10**9)] = 0
    """The last step with it (HASTE: a sixteenth of a long training); 0 is the run's last."""
    projector_width: Annotated[int, Range(1, 65_536)] = 2048
    """Width of the two hidden layers between a block's tokens and the encoder's features."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format in which the encoder computes."""

    def is_on(self, step: int) -> bool:
        """Whether optimizer step `step` (the first is 1) is aligned."""
        return bool(self.encoder) and (self.end_step == 0 or step <= self.end_step)
