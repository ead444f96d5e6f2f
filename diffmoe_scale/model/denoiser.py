"""What is trained: the transformer and, where it learns along, the text encoder."""

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from diffmoe_scale.config.schema import Config
from diffmoe_scale.encoders.text.text import TextEncoder, TextFeatures
from diffmoe_scale.model.transformer import DiffusionTransformer, Prediction
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.moe.routing import Selection


@dataclass(frozen=True)
class Condition:
    """What a batch is to be pictures of: captions and, in class mode, labels. `dropped_B` marks unconditional
    samples.

    `sizes_BZ` is what `model.size_conditioning` tells (transformer.NUM_SIZE_CONDITIONS); None where it is
    off.
    """

    captions: list[str]
    labels_B: Tensor
    dropped_B: Tensor
    sizes_BZ: Tensor | None = None

    @staticmethod
    def unconditional(
        count: int, *, num_classes: int, device: torch.device, sizes_BZ: Tensor | None = None
    ) -> "Condition":
        """`count` empty captions and null classes, for guidance."""
        return Condition(
            captions=[""] * count,
            labels_B=torch.full((count,), num_classes, dtype=torch.int64, device=device),
            dropped_B=torch.ones(count, dtype=torch.bool, device=device),
            sizes_BZ=sizes_BZ,
        )


class Denoiser(nn.Module):
    """Noisy images and a condition to a Prediction. A frozen text encoder is used but is no part of the
    state."""

    def __init__(self, transformer: DiffusionTransformer, text_encoder: TextEncoder | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder if text_encoder is not None and text_encoder.is_trained else None
        # In a list, so that its weights are no parameters of this module.
        self._frozen_encoder = (
            [text_encoder] if text_encoder is not None and not text_encoder.is_trained else []
        )

    def moe_layers(self) -> list[MoELayer]:
        return self.transformer.moe_layers()

    def canonical_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of this rank by the names that checkpoints use: a module's own, but
        `LAYER.experts.<global index>.<w_in, b_in, w_out, b_out>` for experts, whatever the backend and the
        layout of ranks."""
        names = {id(layer): prefix for prefix, layer in self.named_modules()}
        experts = {
            id(parameter): f"{names[id(layer)]}.{name}"
            for layer in self.moe_layers()
            for name, parameter in layer.expert_parameters()
        }
        return {experts.get(id(parameter), name): parameter for name, parameter in self.named_parameters()}

    def canonical_buffers(self) -> dict[str, Tensor]:
        """What is state but no weight: the experts' thresholds and their counts of updates."""
        state = self.state_dict(keep_vars=True)
        return {name: buffer for name, buffer in self.named_buffers() if name in state}

    @property
    def caption_encoder(self) -> TextEncoder | None:
        """The text encoder in use, trained or frozen; None in class mode."""
        return self._frozen_encoder[0] if self._frozen_encoder else self.text_encoder

    def encode(self, captions: list[str], device: torch.device) -> TextFeatures | None:
        """Features of the captions; None in class mode."""
        encoder = self.caption_encoder
        if encoder is None:
            return None
        features: TextFeatures = encoder(encoder.tokenize(captions).to(device))
        return features

    def forward(
        self,
        x_BCHW: Tensor,
        time_B: Tensor,
        condition: Condition,
        selection: Selection,
        text: TextFeatures | None = None,
    ) -> Prediction:
        """`text` spares encoding the captions anew at each step of a sampler."""
        if text is None:
            text = self.encode(condition.captions, x_BCHW.device)
        prediction: Prediction = self.transformer(
            x_BCHW,
            time_B,
            text=text,
            labels_B=condition.labels_B,
            dropped_B=condition.dropped_B,
            selection=selection,
            sizes_BZ=condition.sizes_BZ,
        )
        return prediction


def build_denoiser(
    config: Config,
    *,
    text_encoder: TextEncoder | None,
    latent_channels: int,
    latent_size: int,
    output_channels: int,
    groups: ProcessGroupCollection,
) -> Denoiser:
    """The network of a config, its weights drawn from `run.seed` alone: the same on every rank and for every
    layout."""
    if config.model.channels != latent_channels:
        raise ValueError(
            f"model.channels is {config.model.channels} but the autoencoder gives {latent_channels}; set model.channels={latent_channels}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        transformer = DiffusionTransformer(
            config.model,
            config.moe,
            latent_size=latent_size,
            output_channels=output_channels,
            text_width=text_encoder.token_width if text_encoder else 0,
            pooled_width=text_encoder.pooled_width if text_encoder else 0,
            seed=config.run.seed,
            groups=groups,
        )
    return Denoiser(transformer, text_encoder)
