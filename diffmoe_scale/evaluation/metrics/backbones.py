"""The networks that metrics ask for, from the settings."""

from collections.abc import Sequence
from pathlib import Path

import torch

from diffmoe_scale.config.metrics import MetricsConfig
from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.clip_network import load_clip
from diffmoe_scale.evaluation.metrics.fidelity import CHECKSUM, SOURCE, load_inception
from diffmoe_scale.evaluation.metrics.measures import BackboneName, Measure
from diffmoe_scale.evaluation.metrics.timm_network import load_timm

SETTINGS: dict[BackboneName, tuple[str, ...]] = {
    "inception": ("inception",),
    "timm": ("timm_architecture", "timm_weights"),
    "clip": ("clip_architecture", "clip_weights"),
}
EXPECTED: dict[BackboneName, str] = {
    "inception": f"the path of {SOURCE} (its SHA-256 begins with {CHECKSUM})",
    "timm": "a network of timm and its weight file, such as vit_large_patch14_dinov2 and model.safetensors "
    "from huggingface.co/timm/vit_large_patch14_dinov2.lvd142m",
    "clip": "a network of open_clip and its weight file, such as ViT-L-14-336 and its weights of openai",
}


def check_settings(config: MetricsConfig, measures: Sequence[Measure]) -> None:
    """Raises: ValueError for a metric without its network or its reference."""
    for measure in measures:
        missing = [name for name in SETTINGS[measure.backbone] if not getattr(config, name)]
        if missing:
            raise ValueError(
                f"metric {measure.name} needs metrics.{' and metrics.'.join(missing)}; expected "
                f"{EXPECTED[measure.backbone]}"
            )
        if measure.has_reference and not config.reference:
            raise ValueError(
                f"metric {measure.name} needs metrics.reference; expected an ADM reference .npz or a folder "
                "of pictures"
            )


def load_backbones(
    config: MetricsConfig, measures: Sequence[Measure], device: torch.device
) -> dict[BackboneName, Backbone]:
    """Raises: ValueError for files that are missing, damaged or other ones, OSError."""
    found: dict[BackboneName, Backbone] = {}
    for name in sorted({measure.backbone for measure in measures}):
        match name:
            case "inception":
                path = Path(config.inception)
                found[name] = load_inception(path, checksum=config.inception_checksum, device=device)
            case "timm":
                found[name] = load_timm(
                    config.timm_architecture,
                    Path(config.timm_weights),
                    checksum=config.timm_checksum,
                    size=config.timm_size,
                    device=device,
                )
            case "clip":
                path, checksum = Path(config.clip_weights), config.clip_checksum
                found[name] = load_clip(config.clip_architecture, path, checksum=checksum, device=device)
    return found
