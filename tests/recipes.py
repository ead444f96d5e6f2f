"""The recipes in configs/, and small stand-ins for the pretrained networks that they name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # JSON

from diffmoe_scale.config.load import load_config
from tests.encoders.autoencoder.models import FORMATS, model_of_kind
from tests.encoders.text.language_models import write_model

ROOT = Path(__file__).parents[1]
RECIPES = sorted(
    path for path in ROOT.glob("configs/**/*.yaml") if not path.name.startswith(("evaluate_", "study"))
)
STEPS = 2
KINDS = {"sd-vae": "sd", "flux-vae": "flux", "flux2-vae": "flux2"}
"""The tiny autoencoder that stands for the one of a recipe, by the name of its folder."""
# What the released models say of their shape (Qwen/Qwen3-*, FLUX.1-schnell/vae, FLUX.2-dev/vae).
FOUR_BLOCKS = {"block_out_channels": [128, 256, 512, 512]}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40_960,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "sd-vae": {"_class_name": "AutoencoderKL", "latent_channels": 4} | FOUR_BLOCKS,
    "flux-vae": {"_class_name": "AutoencoderKL", "latent_channels": 16} | FOUR_BLOCKS,
    "flux2-vae": {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32} | FOUR_BLOCKS,
    "qwen3-0.6b": QWEN3
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-1.7b": QWEN3
    | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": QWEN3
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}


def write_published(folder: Path) -> None:
    """`pretrained/` of the recipes with what counts and plans read: each config.json, and no weights."""
    for name, config in PUBLISHED.items():
        place = folder / "pretrained" / name
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if "model_type" in config:
            (place / "model.safetensors").touch()


def write_tiny(folder: Path) -> None:
    """`pretrained/` with tiny random networks of the same classes."""
    for name, kind in KINDS.items():
        model_of_kind(kind).save_pretrained(folder / "pretrained" / name)
    for name in PUBLISHED.keys() - KINDS.keys():
        write_model("qwen3", folder / "pretrained" / name)


def twin_of(recipe: Path, folder: Path, shards: Sequence[Path]) -> list[str]:
    """Settings that make a recipe small: its structure, heads and experts, in blocks that are narrow and few.
    On one process, on a handful of pictures, with the networks of `write_tiny`."""
    config = load_config(recipe)
    model, moe, text = config.model, config.moe, config.text
    is_latent = config.autoencoder.kind == "diffusers"
    channels, factor = FORMATS[KINDS[Path(config.autoencoder.path).name]] if is_latent else (3, 1)
    settings = {
        "run.directory": folder / recipe.stem,
        "run.steps": STEPS,
        "run.global_batch": 4,
        "run.micro_batch": 2,
        "data.train": f"[{shards[0]}]",
        "data.validation": f"[{shards[1]}]" if config.telemetry.validate_every else "[]",
        "data.workers": 0,
        "buckets.enabled": "false",
        "model.image_size": 8 * factor * model.patch_size,
        "model.channels": channels,
        "model.depth": min(model.depth, moe.first_dense + 2 * moe.every),
        "model.width": 4 * model.heads,
        "text.width": 8 * text.heads,
        "text.vocabulary": 300,
        "parallel.expert_parallel": 1,
        "moe.backend": "loop",
        "moe.precision": "model",
        "telemetry.log_every": 1,
        "telemetry.tensorboard": "false",
    }
    if text.encoders:
        entries = [{"kind": one.kind, "path": one.path, "layer": one.layer} for one in text.encoders]
        settings["text.encoders"] = json.dumps([entry | {"max_tokens": 16} for entry in entries])
    return [f"{name}={value}" for name, value in settings.items()]
