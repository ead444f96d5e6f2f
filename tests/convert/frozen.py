"""Frozen networks of every kind as folders: an autoencoder, and lists of text encoders."""

import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from tests.encoders.autoencoder.models import FORMATS, model_of_kind
from tests.encoders.text.language_models import write_model
from tests.encoders.text.texts import TOWER


@dataclass(frozen=True)
class Places:
    """Where frozen networks lie."""

    autoencoder: Path
    channels: int
    """Of its latents."""
    encoders: tuple[str, ...]
    """Values of `text.encoders`: every kind alone, and all of them side by side."""


def write_tower(folder: Path) -> Path:
    """A tiny open_clip tower for `local-dir:`."""
    folder.mkdir()
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**TOWER).state_dict(), folder / "open_clip_model.safetensors")
    description = json.dumps({"model_cfg": TOWER, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(description)
    return folder


def write_frozen(folder: Path) -> Places:
    """All of them in a folder."""
    autoencoder = folder / "vae"
    model_of_kind("flux").save_pretrained(autoencoder)
    tower, t5 = write_tower(folder / "clip"), write_model("t5", folder / "t5")
    qwen3 = write_model("qwen3", folder / "qwen3")
    entries = [
        "{kind: sentencepiece, max_tokens: 9}",
        f"{{kind: open_clip, path: 'local-dir:{tower}', max_tokens: 16}}",
        f"{{kind: transformers, path: '{t5}', max_tokens: 12}}",
        f"{{kind: transformers, path: '{qwen3}', max_tokens: 12, layer: -2}}",
    ]
    lists = [[entry] for entry in entries] + [entries, entries[::-1]]
    return Places(autoencoder, FORMATS["flux"][0], tuple(f"[{', '.join(one)}]" for one in lists))
