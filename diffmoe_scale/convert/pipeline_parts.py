"""The frozen networks of a diffusers folder: which files of theirs go into it, and how the pipeline calls
them."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # JSON

import torch

from diffmoe_scale.config.autoencoder import AutoencoderConfig
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.text import LOCAL_FOLDER, TextEncoderConfig
from diffmoe_scale.convert.pipeline_code import Code, read_code
from diffmoe_scale.convert.pipeline_config import TOKENIZER
from diffmoe_scale.encoders.autoencoder.diffusers import load_autoencoder
from diffmoe_scale.encoders.autoencoder.folder import read_folder
from diffmoe_scale.encoders.text.architecture import build_network
from diffmoe_scale.encoders.text.clip import build_open_clip
from diffmoe_scale.encoders.text.clip_files import SettingNames
from diffmoe_scale.encoders.text.folder import CONFIG_FILE, INDEX_FILE
from diffmoe_scale.encoders.text.pretrained import PretrainedEncoder, build_pretrained
from diffmoe_scale.json_text import parse_json

CHUNK = 1 << 24
SETTINGS, CLIP_CONFIG = "diffmoe_tokenizer.json", "open_clip_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
Class = tuple[str, str]
"""Library, or module of the folder, and class: an entry of model_index.json."""


@dataclass(frozen=True)
class Part:
    """A component that is not trained: its class, files to copy by their new names, and JSON files."""

    kind: Class
    files: Mapping[str, Path] = field(default_factory=dict)
    trees: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    """What model_index.json says of how it is called."""
    code: Code | None = None

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())

    def write(self, folder: Path, *, links: bool) -> None:
        """With `links` weights are links to where they are. Raises: OSError."""
        folder.mkdir()
        for name, path in self.files.items():
            if links and path.suffix in WEIGHTS:
                (folder / name).symlink_to(path.resolve())
            else:
                copy_file(path, folder / name)
        for name, tree in self.trees.items():
            write_json(folder / name, tree)
        if self.code is not None:
            write_code(folder, self.code)


def copy_file(source: Path, target: Path) -> None:
    """A copy that is on disk. Raises: OSError."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def write_code(folder: Path, code: Code) -> None:
    (folder / f"{code.module}.py").write_text(code.text, encoding="utf-8")


def autoencoder_part(config: AutoencoderConfig) -> Part | None:
    """None for pixels. Raises: ValueError for a folder that holds no autoencoder, or is not there."""
    if config.kind == "pixels":
        return None
    folder = Path(config.path)
    # Statistics are those of the weights as they are stored.
    autoencoder = load_autoencoder(replace(config, precision="fp32"), device=torch.device("cpu"))
    shift_C, scale_C = autoencoder.convention.statistics(autoencoder.model)
    tree = read_folder(folder)
    name = str(tree["_class_name"])
    call = {
        "factor": autoencoder.factor,
        "shift": shift_C.tolist(),
        "scale": scale_C.tolist(),
        "patch": int(tree.get("patch_size", [2, 2])[0]) if name == "AutoencoderKLFlux2" else 1,
        "is_video": name == "AutoencoderKLQwenImage",
        "precision": config.precision,
    }
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    files = {path.name: path for path in (folder / "config.json", *sorted(weights))}
    return Part(("diffusers", name), files, call=call)


def encoder_parts(encoder: TextEncoderConfig, *, setting: str) -> tuple[Part, Part]:
    """A frozen text encoder and its tokenizer. Raises: ValueError naming what a folder cannot hold."""
    if encoder.kind == "open_clip":
        return _open_clip_parts(encoder, setting=setting)
    built = build_pretrained(encoder, setting=setting)
    folder = built.plan.folder
    tree = parse_json((folder.path / CONFIG_FILE).read_text(encoding="utf-8"))
    if tree.get("model_type") != folder.model_type:
        raise ValueError(
            f"{setting}.path is a {tree.get('model_type')!r} model of text and pictures; a diffusers folder "
            f"holds encoders of text alone: expected a folder of its {folder.model_type!r} model"
        )
    name = type(build_network(folder, built.plan.architecture, layer=built.plan.layer)).__name__
    if folder.model_type == "t5gemma":
        tree["is_encoder_decoder"] = False  # its class takes no other
    files = {path.name: path for path in folder.weights}
    if (folder.path / INDEX_FILE).is_file():
        files[INDEX_FILE] = folder.path / INDEX_FILE
    call = {"layer": built.plan.layer, "precision": encoder.precision}
    part = Part(("transformers", name), files, {CONFIG_FILE: tree}, call)
    return part, _tokenizer_part(built)


def _tokenizer_part(built: PretrainedEncoder) -> Part:
    tokenizer, code = built.tokenizer, read_code("tokenizer")
    tree = {
        "max_tokens": tokenizer.max_tokens,
        "start": list(tokenizer.start),
        "end": list(tokenizer.end),
        "pad": tokenizer.pad,
        "empty": tokenizer.empty,
        "keeps_spaces": tokenizer.keeps_spaces,
    }
    file = built.tokenizer_file
    return Part((code.module, TOKENIZER), {file.name: file}, {SETTINGS: tree}, code=code)


def _open_clip_parts(encoder: TextEncoderConfig, *, setting: str) -> tuple[Part, Part]:
    """Files of a `local-dir:` folder, or of a weight file and the description of its architecture."""
    names = SettingNames(f"{setting}.path", f"{setting}.architecture", f"{setting}.max_tokens")
    build_open_clip(encoder, names)
    code, trees = read_code("open_clip"), {}
    if encoder.path.startswith(LOCAL_FOLDER):
        folder = Path(encoder.path.removeprefix(LOCAL_FOLDER))
        weights = [path for path in folder.iterdir() if path.suffix in WEIGHTS]
        files = {path.name: path for path in (folder / CLIP_CONFIG, *sorted(weights))}
    else:
        import open_clip  # seconds, and needed by few

        path = Path(encoder.path)
        is_safe = path.suffix == ".safetensors"
        files = {"open_clip_model.safetensors" if is_safe else "open_clip_pytorch_model.bin": path}
        description = open_clip.get_model_config(encoder.architecture)
        trees = {CLIP_CONFIG: {"model_cfg": description, "preprocess_cfg": {}}}
    call = {"layer": 0, "precision": encoder.precision}
    tower = Part((code.module, "DiffMoEOpenClip"), files, trees, call, code)
    description_files = {name: path for name, path in files.items() if name == CLIP_CONFIG}
    tokenizer = Part(
        (code.module, "DiffMoEOpenClipTokenizer"),
        description_files,
        {**trees, "max_tokens.txt": encoder.max_tokens},
        code=code,
    )
    return tower, tokenizer


def frozen_encoders(config: Config) -> Sequence[tuple[int, TextEncoderConfig]]:
    """The encoders that are not trained along, by their place."""
    if config.model.conditioning == "class":
        return ()
    return [pair for pair in enumerate(config.text.listed()) if pair[1].kind != "sentencepiece"]
