"""Features of an open_clip network from local files: of pictures, and of their captions."""

import difflib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any  # open_clip's networks and JSON carry no types

import torch
import torch.nn.functional as F
from torch import Tensor

from diffmoe_scale.evaluation.metrics.backbone import Backbone
from diffmoe_scale.evaluation.metrics.resize import normalize, resize_bicubic, resize_rule
from diffmoe_scale.evaluation.metrics.weights import check_weights
from diffmoe_scale.json_text import parse_json
from diffmoe_scale.words import short_reason

LOCAL = "local-dir"
"""The architecture of a folder that holds its own description."""
DESCRIPTION, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
ELSEWHERE = ("hf_model_name", "hf_tokenizer_name")
"""Entries of a description whose files open_clip would look for on the network."""
SETTING = "the weight file of CLIP"


class ClipNetwork:
    """Outputs `pool`, the projected features as they come, and `cosines` where captions are given."""

    def __init__(self, network: Any, tokenizer: Any, size: int, width: int) -> None:
        self.network, self.tokenizer, self.size = network, tokenizer, size
        self.widths: Mapping[str, int] = {"pool": width, "cosines": 1}

    def __call__(self, pictures_BCHW: Tensor, captions: Sequence[str] | None) -> dict[str, Tensor]:
        visual = self.network.visual
        resized_BCHW = resize_bicubic(pictures_BCHW, self.size)
        pool_BF = self.network.encode_image(normalize(resized_BCHW, visual.image_mean, visual.image_std))
        if captions is None:
            return {"pool": pool_BF}
        tokens_BL = self.tokenizer(list(captions)).to(pictures_BCHW.device)
        text_BF = self.network.encode_text(tokens_BL)
        return {"pool": pool_BF, "cosines": F.cosine_similarity(pool_BF, text_BF)}


def load_clip(architecture: str, path: Path, *, checksum: str, device: torch.device) -> Backbone:
    """`path` is a weight file, or for the architecture `local-dir` a folder with a description.

    Raises: ValueError for an unknown architecture and for files that are missing, have another checksum, hold
    code or other weights; OSError.
    """
    import open_clip  # seconds, and needed by few

    is_folder = architecture == LOCAL
    source = f"a folder with {DESCRIPTION} and {WEIGHTS}" if is_folder else f"weights of {architecture}"
    if is_folder and not (path / DESCRIPTION).is_file():
        raise ValueError(f"the folder of CLIP is {path}, which has no {DESCRIPTION}; expected {source}")
    if not is_folder and architecture not in (known := open_clip.list_models()):
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        raise ValueError(
            f"{architecture!r} is no architecture of open_clip; near it: {', '.join(near) or 'none'}"
        )
    file = path / WEIGHTS if is_folder else path
    digest = check_weights(file, setting=SETTING, checksum=checksum, source=source)
    name = f"{LOCAL}:{path.resolve()}" if is_folder else architecture
    try:
        description = _describe(path, architecture)
        # Absolute, so that a file called like one of open_clip's pretrained tags is not taken for the tag.
        weights = None if is_folder else str(file.resolve())
        network = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip, torch and safetensors each raise their own
        reason = short_reason(error)
        raise ValueError(f"{SETTING} {file} does not load as {architecture}: {reason}") from error
    network.requires_grad_(False).eval().to(device)
    side = network.visual.image_size
    size = int(side if isinstance(side, int) else side[0])
    features = ClipNetwork(network, tokenizer, size, int(description["embed_dim"]))
    shown = path.resolve().name if is_folder else architecture
    if is_folder:  # its description says which network the weights make: another one, other features
        digest = sha256(digest.encode() + (path / DESCRIPTION).read_bytes()).hexdigest()
    return Backbone(shown, digest[:16], resize_rule(size), features, device)


def _describe(path: Path, architecture: str) -> Any:
    """Raises: ValueError for a network whose parts open_clip does not bundle."""
    import open_clip

    if architecture == LOCAL:
        description = parse_json((path / DESCRIPTION).read_text(encoding="utf-8"))["model_cfg"]
    else:
        description = open_clip.get_model_config(architecture)
    elsewhere = [name for name in ELSEWHERE if description["text_cfg"].get(name)]
    if elsewhere:
        raise ValueError(f"its text tower has {', '.join(elsewhere)}; expected open_clip's own tokenizer")
    return description
