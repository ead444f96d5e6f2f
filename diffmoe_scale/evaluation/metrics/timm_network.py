"""Features of any network of timm, such as DINOv2, from a local file. timm is imported here alone."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # timm's networks and settings carry no types

import torch
from torch import Tensor, nn

from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.resize import normalize, resize_bicubic, resize_rule
from diffmoe_scale.evaluation.metrics.weights import check_weights
from diffmoe_scale.words import short_reason

DINOV2_SIZE = 224
"""Pixels at which the Frechet distance of DINOv2 is defined (arXiv 2306.04675); it was trained at 518."""


class TimmNetwork:
    """Outputs `pool`, and `logits` where the network is a classifier."""

    def __init__(self, network: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.network, self.size, self.mean, self.std = network, size, mean, std
        self.classifier = network.get_classifier()
        self.widths: Mapping[str, int] = {"pool": network.num_features}
        if isinstance(self.classifier, nn.Linear):
            self.widths = {"pool": self.classifier.in_features, "logits": self.classifier.out_features}

    def __call__(self, pictures_BCHW: Tensor, captions: Sequence[str] | None) -> dict[str, Tensor]:
        inputs_BCHW = normalize(resize_bicubic(pictures_BCHW, self.size), self.mean, self.std)
        hidden = self.network.forward_features(inputs_BCHW)
        pool_BF = self.network.forward_head(hidden, pre_logits=True)
        if "logits" not in self.widths:
            return {"pool": pool_BF}
        return {"pool": pool_BF, "logits": self.classifier(pool_BF)}


def load_timm(architecture: str, path: Path, *, checksum: str, size: int, device: torch.device) -> Backbone:
    """`size` is the side in pixels at which the network reads; 0 is its own, for DINOv2 224.

    Raises: ValueError for an unknown architecture and for a file that is missing, has another checksum, holds
    code or other weights; OSError.
    """
    import timm

    setting = "the weight file of timm"
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        raise ValueError(f"{architecture!r} is no architecture of timm; near it: {', '.join(near) or 'none'}")
    settings: Any = timm.get_pretrained_cfg(architecture)
    hub = settings and (settings.hf_hub_id or settings.url)
    source = f"weights of {architecture}" + (f", such as {hub}" if hub else "")
    digest = check_weights(path, setting=setting, checksum=checksum, source=source)
    try:
        network: Any = timm.create_model(
            architecture, pretrained=True, pretrained_cfg_overlay={"file": str(path.resolve())}
        )
    except Exception as error:  # timm, torch and safetensors each raise their own
        raise ValueError(
            f"{setting} {path} does not load as {architecture}: {short_reason(error)}"
        ) from error
    found = timm.data.resolve_model_data_config(network)
    size = size or (DINOV2_SIZE if "dinov2" in architecture else found["input_size"][-1])
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=(size, size))
    network.requires_grad_(False).eval().to(device)
    features = TimmNetwork(network, size, found["mean"], found["std"])
    return Backbone(architecture, digest[:16], resize_rule(size), features, device)
