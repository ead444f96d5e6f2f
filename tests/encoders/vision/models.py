"""Folders of tiny random encoders of pictures, as transformers writes them."""

import json
from pathlib import Path
from typing import Any  # transformers' networks carry few types

import torch
import transformers

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")


def write_teacher(folder: Path, kind: str = "dinov2", *, seed: int = 0) -> Any:
    """Write a model and return it. Its patches are 7 wide, its table of positions is 4 x 4."""
    torch.manual_seed(seed)
    network: Any
    config: Any
    match kind:
        case "dinov2":
            network = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
        case "dinov2_with_registers":
            config = transformers.Dinov2WithRegistersConfig(num_register_tokens=3, **SIZES)
            network = transformers.Dinov2WithRegistersModel(config)
        case _:
            config = transformers.DINOv3ViTConfig(num_register_tokens=2, intermediate_size=48, **SIZES)
            network = transformers.DINOv3ViTModel(config)
    with torch.no_grad():
        for parameter in network.parameters():  # norms and scales are constants at first
            parameter.add_(0.1 * torch.randn(parameter.shape))
    network.eval().save_pretrained(folder)
    return network


def write_preprocessor(folder: Path, **settings: object) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
