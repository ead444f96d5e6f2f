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
from diffmoe_scale.encoders.text.build import build_text_encoders
from diffmoe_scale.encoders.text.features import StreamWidths, TextFeatures
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.initialization import initialize_weights
from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.nn.number_formats import NUMBER_FORMATS


@dataclass(frozen=True)
class Networks:
    """The networks of a run. The text encoder that is trained along is the denoiser's own."""

    denoiser: Denoiser
    objective: Objective
    autoencoder: Autoencoder
    text_encoders: TextEncoders
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
        dropped_B: Tensor | None = None,
    ) -> Condition:
        """What the denoiser is given for captions (or, in class mode, labels), on the device: features of
        frozen text encoders, `text` if they were computed before, and ids for the one that is trained
        along. `dropped_B` tells whose caption was dropped; None: whose is empty."""
        if dropped_B is None:
            dropped_B = torch.tensor([not caption for caption in captions], dtype=torch.bool)
        labels_B = labels_B.to(self.device)
        sizes_BZ = None if sizes_BZ is None else sizes_BZ.to(self.device)
        trained = self.text_encoders.trained
        tokens_BL = None if trained is None else trained.tokenize(captions).to(self.device)
        if text is None:
            text = self.text_encoders.encode_frozen(captions, self.device)
        return Condition(
            labels_B,
            sizes_BZ,
            text=None if text is None else text.to(self.device),
            tokens_BL=tokens_BL,
            dropped_B=dropped_B.to(self.device),
        )

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
    reads_captions: bool = True,
) -> Networks:
    """The untrained network of a config, its weights in the format `model.precision`, with all that surrounds
    it. Collective over `waiting_group` (None: this process alone), whose first rank finds the fingerprints.
    Without `reads_captions`, frozen text encoders wait for the first caption with reading their weights.

    Raises: ValueError if image, autoencoder, patches and channels do not fit each other.
    """
    objective = build_objective(config.diffusion)
    autoencoder = build_autoencoder(config.autoencoder, device=device)
    text_encoders = TextEncoders()
    if config.model.conditioning == "text":
        text_encoders = build_text_encoders(config.text, tokenizer_path=tokenizer_path)
    check_sizes(config, channels=autoencoder.channels, factor=autoencoder.factor)
    latent_size = config.model.image_size // autoencoder.factor
    # Three steps: construction takes no memory, weights come from run.seed alone, then they are placed.
    transformer = build_transformer(
        config,
        latent_size=latent_size,
        output_channels=objective.output_channels(autoencoder.channels),
        text_streams=text_encoders.widths,
        groups=groups,
    )
    denoiser = Denoiser(transformer, text_encoders.trained, trained_stream=text_encoders.trained_stream)
    initialize_weights(denoiser, config.run.seed)
    denoiser.to(device, NUMBER_FORMATS[config.model.precision])
    # First, on one rank: the others find what it read in the page cache.
    fingerprints = find_fingerprints(autoencoder, text_encoders, waiting_group)
    if reads_captions:
        text_encoders.load(device)
    return Networks(
        denoiser=denoiser,
        objective=objective,
        autoencoder=autoencoder,
        text_encoders=text_encoders,
        latent_shape=(autoencoder.channels, latent_size, latent_size),
        num_classes=config.model.num_classes,
        device=device,
        frozen=fingerprints,
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
    text_streams: tuple[StreamWidths, ...],
    groups: ProcessGroupCollection,
) -> DiffusionTransformer:
    """The transformer of a config on `meta`: names and shapes without memory or weights. `text_streams` are
    the shapes of what the text encoders give, none in class mode."""
    with torch.device("meta"):
        return DiffusionTransformer(
            config.model,
            config.moe,
            latent_size=latent_size,
            output_channels=output_channels,
            text_streams=text_streams,
            groups=groups,
        )


def find_fingerprints(
    autoencoder: Autoencoder, text_encoders: TextEncoders, group: dist.ProcessGroup | None
) -> dict[str, str]:
    """Fingerprints of the frozen networks by their section of settings, "" where there is none. Collective
    over `group`: its first rank reads the weights, perhaps gigabytes, while the others wait."""
    found: list[dict[str, str]] = [{}]
    if group is None or group.rank() == 0:
        found = [{"autoencoder": autoencoder.fingerprint(), "text": text_encoders.fingerprint()}]
    if group is not None and group.size() > 1:
        dist.broadcast_object_list(found, group=group, group_src=0)
    return found[0]
