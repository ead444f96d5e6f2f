"""All text encoders of a run, in the order of its config."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures
from diffmoe_scale.encoders.text.frozen import FrozenTextEncoder
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder


@dataclass(frozen=True)
class TextEncoders:
    """Encoders by the stream that they give; none in class mode."""

    encoders: tuple[TextEncoder, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def widths(self) -> tuple[StreamWidths, ...]:
        return tuple(
            StreamWidths(name, encoder.token_width, encoder.pooled_width)
            for name, encoder in zip(self.names, self.encoders, strict=True)
        )

    @property
    def trained(self) -> TrainedTextEncoder | None:
        """The one that is trained along."""
        found = (encoder for encoder in self.encoders if isinstance(encoder, TrainedTextEncoder))
        return next(found, None)

    @property
    def trained_stream(self) -> int:
        """The place of its stream among all; 0 without one."""
        found = (number for number, encoder in enumerate(self.encoders) if encoder.is_trained)
        return next(found, 0)

    @property
    def frozen(self) -> tuple[FrozenTextEncoder, ...]:
        return tuple(encoder for encoder in self.encoders if isinstance(encoder, FrozenTextEncoder))

    def load(self, device: torch.device) -> None:
        """Read the weights of the frozen encoders, unless they are there."""
        for encoder in self.frozen:
            encoder.load(device)

    @torch.no_grad()
    def encode_frozen(self, captions: Sequence[str], device: torch.device) -> TextFeatures | None:
        """The streams of the frozen encoders, in fp32; None where there are none."""
        if not self.frozen:
            return None
        streams = tuple(encoder(encoder.tokenize(captions).to(device)) for encoder in self.frozen)
        return TextFeatures(streams).to(device)

    def fingerprint(self) -> str:
        """Of all frozen encoders; "" without one."""
        return " ".join(encoder.fingerprint() for encoder in self.frozen)
