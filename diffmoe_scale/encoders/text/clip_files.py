"""Weight files of open_clip on this machine, and descriptions of its text towers."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # open_clip's JSON carries no types

from diffmoe_scale.config.check import require
from diffmoe_scale.config.text import LOCAL_FOLDER, TextEncoderConfig
from diffmoe_scale.encoders.fingerprint import WeightFiles

SHOWN_BY_WEIGHTS = frozenset({"context_length", "vocab_size", "width", "layers"})
HEAD_WIDTH = 64
"""Of every tower that OpenAI published."""


@dataclass(frozen=True)
class SettingNames:
    """What errors call the settings by."""

    path: str
    architecture: str
    max_tokens: str


def local_open_clip(
    config: TextEncoderConfig, names: SettingNames, known: list[str]
) -> tuple[str, str | None]:
    """Name and weight file for open_clip, checked to be on this machine: it would look for anything else on
    the network, half a minute long."""
    name, weights = config.architecture, config.path
    if weights.startswith(LOCAL_FOLDER):
        folder = Path(weights.removeprefix(LOCAL_FOLDER))
        is_complete = (folder / "open_clip_config.json").is_file() and any(_weights_in(folder))
        require(
            is_complete,
            names.path,
            weights,
            "local-dir: and a folder with open_clip_config.json and a weight file",
        )
        return weights, None
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
    require(name in known, names.architecture, name, f"a name known to open_clip, such as {', '.join(near)}")
    require(
        Path(weights).is_file(),
        names.path,
        weights,
        "an existing local weight file, or local-dir: and a folder",
    )
    # Absolute, so that a file called like one of open_clip's pretrained tags is not taken for the tag.
    return name, str(Path(weights).resolve())


def _weights_in(folder: Path) -> list[Path]:
    return [file for ending in ("safetensors", "bin", "pth") for file in folder.glob(f"*.{ending}")]


def weight_files(weights: str) -> WeightFiles:
    """Of `local-dir:` and a folder, or of one weight file."""
    if weights.startswith(LOCAL_FOLDER):
        folder = Path(weights.removeprefix(LOCAL_FOLDER))
        files = [folder / "open_clip_config.json", *_weights_in(folder)]
        return WeightFiles(files, record=folder / "fingerprint.json")
    return WeightFiles([Path(weights)], record=Path(f"{weights}.fingerprint.json"))


def _check_architecture(architecture: dict[str, Any]) -> None:  # open_clip's JSON
    """Raise ValueError for towers whose tokenizer open_clip does not bundle, or whose features depend on the
    padding."""
    unfit = [
        key
        for key in ("hf_model_name", "hf_tokenizer_name", "no_causal_mask", "embed_cls")
        if architecture.get("text_cfg", {}).get(key)
    ]
    unfit += [key for key in ("multimodal_cfg",) if key in architecture]
    if unfit:
        raise ValueError(
            f"its text tower has {', '.join(unfit)}; expected a causal tower with open_clip's own tokenizer"
        )


def widths_of(architecture: dict[str, Any]) -> tuple[int, int]:  # open_clip's JSON
    _check_architecture(architecture)
    return int(architecture["text_cfg"]["width"]), int(architecture["embed_dim"])


def unusual_settings(architecture: dict[str, Any]) -> tuple[tuple[str, object], ...]:
    """What the shapes of weights do not show: ViT-B-32-quickgelu takes those of ViT-B-32, and gives other
    features. Empty for OpenAI's usual tower, whose early fingerprints stay."""
    settings = dict(architecture["text_cfg"])
    is_usual = settings.get("heads", 8) * HEAD_WIDTH == settings["width"]
    shown = {*SHOWN_BY_WEIGHTS, "heads"} if is_usual else SHOWN_BY_WEIGHTS
    found = {key: value for key, value in settings.items() if key not in shown}
    if architecture.get("quick_gelu"):
        found["quick_gelu"] = True
    return tuple(sorted(found.items()))
