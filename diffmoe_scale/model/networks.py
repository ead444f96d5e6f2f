"""What is trained and what surrounds it: the denoiser, its objective, and what encodes before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from diffmoe_scale.config.schema import Config
from diffmoe_scale.diffusion.objective import Objective, build_objective
from diffmoe_scale.encoders.autoencoder.build import Autoencoder, build_autoencoder, check_picture_sizes
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.encoder import TextEncoder
from diffmoe_scale.encoders.text.features import TextFeatures
from diffmoe_scale.encoders.text.trained import TrainedTextEncoder
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.initialization import initialize_weights
from diffmoe_scale.model.transformer import DiffusionTransformer

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Networks:
    """The networks of a run. `text_encoder` is the denoiser's own where it is trained along, and None in
    class mode."""

    denoiser: Denoiser
    objective: Objective
    autoencoder: Autoencoder
    text_encoder: TextEncoder | None
    latent_shape: tuple[int, int, int]
    """[C, H, W] of the latents of an image of `model.image_size`."""
    num_classes: int
    device: torch.device
    frozen: dict[str, str]
    """Fingerprints of the networks that are not trained, by their section of settings; "" where there is
    none."""

    def condition(
        self,
        captions: Sequence[str],
        labels_B: Tensor,
        *,
        sizes_BZ: Tensor | None = None,
        text: TextFeatures | None = None,
    ) -> Condition:
        """What the denoiser is given for captions (or, in class mode, labels), on the device: features of a
        frozen text encoder, `text` if they were computed before, or ids for the one that is trained along."""
        labels_B = labels_B.to(self.device)
        sizes_BZ = None if sizes_BZ is None else sizes_BZ.to(self.device)
        if self.text_encoder is None:
            return Condition(labels_B, sizes_BZ)
        if text is not None:
            return Condition(labels_B, sizes_BZ, text=text.to(self.device))
        tokens_BL = self.text_encoder.tokenize(captions).to(self.device)
        if self.text_encoder.is_trained:
            return Condition(labels_B, sizes_BZ, tokens_BL=tokens_BL)
        with torch.no_grad():
            return Condition(labels_B, sizes_BZ, text=self.text_encoder(tokens_BL))

    def unconditional(self, count: int, *, sizes_BZ: Tensor | None = None) -> Condition:
        """`count` empty captions and null classes, for guidance."""
        return self.condition([""] * count, torch.full((count,), self.num_classes), sizes_BZ=sizes_BZ)


def build_networks(
    config: Config,
    *,
    tokenizer_path: Path,
    groups: ProcessGroupCollection,
    device: torch.device,
    waiting_group: dist.ProcessGroup | None = None,
) -> Networks:
    """The untrained network of a config, its weights in the format `model.precision`, with all that surrounds
    it. Collective over `waiting_group` (None: this process alone), whose first rank finds the fingerprints.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other.
    """
    objective = build_objective(config.diffusion)
    autoencoder = build_autoencoder(config.autoencoder, device=device)
    text_encoder = None
    if config.model.conditioning == "text":
        text_encoder = build_text_encoder(config.text, tokenizer_path=tokenizer_path)
        if not text_encoder.is_trained:
            text_encoder.to(device)
    check_sizes(config, channels=autoencoder.channels, factor=autoencoder.factor)
    latent_size = config.model.image_size // autoencoder.factor
    # Three steps: construction takes no memory, weights come from run.seed alone, then they are placed.
    transformer = build_transformer(
        config,
        latent_size=latent_size,
        output_channels=objective.output_channels(autoencoder.channels),
        text_widths=(text_encoder.token_width, text_encoder.pooled_width) if text_encoder else (0, 0),
        groups=groups,
    )
    denoiser = Denoiser(transformer, text_encoder if isinstance(text_encoder, TrainedTextEncoder) else None)
    initialize_weights(denoiser, config.run.seed)
    denoiser.to(device, NUMBER_FORMATS[config.model.precision])
    return Networks(
        denoiser=denoiser,
        objective=objective,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        latent_shape=(autoencoder.channels, latent_size, latent_size),
        num_classes=config.model.num_classes,
        device=device,
        frozen=find_fingerprints(autoencoder, text_encoder, waiting_group),
    )


def check_sizes(config: Config, *, channels: int, factor: int) -> None:
    """Raise ValueError unless the config fits an autoencoder with latents of `channels`, smaller by
    `factor`."""
    check_picture_sizes(config, factor=factor)
    if config.model.channels != channels:
        raise ValueError(
            f"model.channels is {config.model.channels} but the autoencoder gives {channels}; "
            f"set model.channels={channels}"
        )


def build_transformer(
    config: Config,
    *,
    latent_size: int,
    output_channels: int,
    text_widths: tuple[int, int],
    groups: ProcessGroupCollection,
) -> DiffusionTransformer:
    """The transformer of a config on `meta`: names and shapes without memory or weights. `text_widths` are
    those of a token's and of a caption's pooled features, 0 in class mode."""
    text_width, pooled_width = text_widths
    with torch.device("meta"):
        return DiffusionTransformer(
            config.model,
            config.moe,
            latent_size=latent_size,
            output_channels=output_channels,
            text_width=text_width,
            pooled_width=pooled_width,
            groups=groups,
        )


def find_fingerprints(
    autoencoder: Autoencoder, text_encoder: TextEncoder | None, group: dist.ProcessGroup | None
) -> dict[str, str]:
    """Fingerprints of the frozen networks by their section of settings, "" where there is none. Collective
    over `group`: its first rank reads the weights, perhaps gigabytes, while the others wait."""
    found: list[dict[str, str]] = [{}]
    if group is None or group.rank() == 0:
        found = [
            {
                "autoencoder": autoencoder.fingerprint(),
                "text": text_encoder.fingerprint() if text_encoder else "",
            }
        ]
    if group is not None and group.size() > 1:
        dist.broadcast_object_list(found, group=group, group_src=0)
    return found[0]
