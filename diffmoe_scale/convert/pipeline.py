"""A model as a folder that diffusers loads by itself, written whole."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # JSON

from diffmoe_scale.checkpoint.stored import StoredWeights, export_metadata
from diffmoe_scale.checkpoint.tensor_file import LazyTensor, write_tensors
from diffmoe_scale.convert.export import split_shards
from diffmoe_scale.convert.pipeline_code import Code, read_code
from diffmoe_scale.convert.pipeline_config import (
    PIPELINE,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER,
    has_trained_encoder,
    model_file,
    pieces_tree,
    refuse_unfit,
    sampling_tree,
    scheduler_tree,
    text_encoder_tree,
    transformer_tree,
)
from diffmoe_scale.convert.pipeline_parts import (
    SETTINGS,
    Part,
    autoencoder_part,
    encoder_parts,
    frozen_encoders,
    write_code,
    write_json,
)
from diffmoe_scale.convert.pipeline_readme import readme
from diffmoe_scale.convert.pipeline_tensors import to_folder
from diffmoe_scale.convert.verify import VOCABULARY

WEIGHTS = "diffusion_pytorch_model"
ORIGIN = "diffmoe_scale.json"
"""What a folder says of the run that it was made of; `pipeline_import` reads it."""
INDEX, PIECES = "model_index.json", "spiece.model"
FORMAT, SCHEMA = "diffmoe_scale diffusers folder", 1
SLOTS = ("", "_2", "_3", "_4")
"""Ends of the names of several text encoders."""


@dataclass(frozen=True)
class Folder:
    """All that goes into a folder, before anything is written."""

    stored: StoredWeights
    family: str
    layout: str
    parts: Mapping[str, Part | None]
    """Components that are not trained, by their names."""

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts.values() if part is not None)


def plan_folder(stored: StoredWeights, *, layout: str) -> Folder:
    """Raises: ValueError naming what of the model a folder cannot hold, or a frozen network that is not
    there."""
    families = [name for name in stored.families if name != "buffer"]
    if len(families) != 1:
        raise ValueError(
            f"a diffusers folder holds one family of weights, not {' and '.join(families)}: give --weights "
            "ema or --weights master"
        )
    config = stored.config
    refuse_unfit(config)
    if has_trained_encoder(config) and not stored.tokenizer:
        raise ValueError(f"{stored.path} has no tokenizer for the text encoder that was trained along")
    parts: dict[str, Part | None] = {"vae": autoencoder_part(config.autoencoder)}
    for number, encoder in frozen_encoders(config):
        encoder_part, tokens_part = encoder_parts(encoder, setting=f"text.encoders.{number}")
        parts[f"text_encoder{SLOTS[number]}"] = encoder_part
        parts[f"tokenizer{SLOTS[number]}"] = tokens_part
    return Folder(stored, families[0], layout, parts)


def write_folder(folder: Folder, path: Path, *, shard_gib: float, links: bool) -> None:
    """Raises: OSError."""
    stored, config = folder.stored, folder.stored.config
    version = importlib.metadata.version("diffusers")
    path.mkdir()
    own, text = to_folder(stored.family(folder.family), layout=folder.layout)
    code = read_code("transformer")
    tree = transformer_tree(stored, layout=folder.layout)
    tree = model_file(TRANSFORMER, tree, module=code.module, version=version)
    write_model(path / "transformer", tree, code, own, shard_gib=shard_gib)
    index: dict[str, Any] = {"transformer": [code.module, TRANSFORMER]}
    name, settings = scheduler_tree(config)
    (path / "scheduler").mkdir()
    tree = {"_class_name": name, "_diffusers_version": version, **settings}
    write_json(path / "scheduler" / "scheduler_config.json", tree)
    index["scheduler"] = ["diffusers", name]
    for component, part in folder.parts.items():
        if part is not None:
            part.write(path / component, links=links)
            index[component] = list(part.kind)
    if text:
        index |= write_trained_encoder(folder, path, text, version=version)
    code = read_code("pipeline")
    write_code(path, code)
    write_json(path / INDEX, index_tree(folder, index, code, version=version))
    write_json(path / ORIGIN, origin_tree(folder))
    (path / "README.md").write_text(readme(folder.stored, links=links), encoding="utf-8")


def write_trained_encoder(
    folder: Folder, path: Path, tensors: Mapping[str, LazyTensor], *, version: str
) -> dict[str, Any]:
    """The text encoder that was trained along and its tokenizer; their entries of model_index.json."""
    config = folder.stored.config
    slot, trained = SLOTS[config.text.trained_stream], config.text.trained
    assert trained is not None
    code = read_code("text_encoder")
    vocabulary = tensors[VOCABULARY.partition(".")[2]].shape[0]
    tree = text_encoder_tree(config, vocabulary=vocabulary)
    tree = model_file(TEXT_ENCODER, tree, module=code.module, version=version)
    write_model(path / f"text_encoder{slot}", tree, code, tensors, shard_gib=0)
    tokenizer = path / f"tokenizer{slot}"
    tokenizer.mkdir()
    (tokenizer / PIECES).write_bytes(folder.stored.tokenizer)
    write_json(tokenizer / SETTINGS, pieces_tree(trained.max_tokens))
    write_code(tokenizer, read_code("tokenizer"))
    return {
        f"text_encoder{slot}": [code.module, TEXT_ENCODER],
        f"tokenizer{slot}": [read_code("tokenizer").module, TOKENIZER],
    }


def write_model(
    path: Path, tree: Mapping[str, Any], code: Code, tensors: Mapping[str, LazyTensor], *, shard_gib: float
) -> None:
    """A model's folder: config.json, its code, and one file of weights or several with an index."""
    path.mkdir()
    write_json(path / "config.json", tree)
    write_code(path, code)
    shards = split_shards(tensors, round(shard_gib * 2**30))
    if len(shards) == 1:
        write_tensors(path / f"{WEIGHTS}.safetensors", tensors, {"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"{WEIGHTS}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(path / file, {name: tensors[name] for name in names}, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    size = sum(tensor.num_bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(path / f"{WEIGHTS}.safetensors.index.json", index)


def index_tree(folder: Folder, components: Mapping[str, Any], code: Code, *, version: str) -> dict[str, Any]:
    """model_index.json: every component of the pipeline, those that are not there as null."""
    config = folder.stored.config
    names = [f"{kind}{slot}" for slot in SLOTS for kind in ("text_encoder", "tokenizer")]
    encoders = [
        {"layer": 0, "precision": "fp32"}
        if (part := folder.parts.get(f"text_encoder{SLOTS[number]}")) is None
        else dict(part.call)
        for number in range(len(config.text.listed()) if config.model.conditioning == "text" else 0)
    ]
    autoencoder = folder.parts["vae"]
    return {
        "_class_name": [code.module, PIPELINE],
        "_diffusers_version": version,
        **{name: components.get(name, [None, None]) for name in ("transformer", "scheduler", "vae", *names)},
        "sampling": sampling_tree(config),
        "encoders": encoders,
        "latents": {} if autoencoder is None else dict(autoencoder.call),
    }


def origin_tree(folder: Folder) -> dict[str, Any]:
    """What `convert_checkpoint` needs to make weights of ours again."""
    metadata = export_metadata(folder.stored)
    metadata.pop("tokenizer", None)  # spiece.model is it
    return {"format": FORMAT, "schema": SCHEMA, "family": folder.family, "metadata": metadata}
