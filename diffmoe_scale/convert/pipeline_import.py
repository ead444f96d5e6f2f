"""A diffusers folder that this program wrote, as weights of ours. No code of the folder is run."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # JSON

import torch

from diffmoe_scale.checkpoint.stored import StoredWeights, check_formats, metadata_trees
from diffmoe_scale.checkpoint.tensor_file import LazyTensor, read_row, read_shards, read_tensors
from diffmoe_scale.config.load import make_config
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.section import show
from diffmoe_scale.config.text import LOCAL_FOLDER
from diffmoe_scale.config.yaml_file import parse_yaml
from diffmoe_scale.convert.pipeline import FORMAT, ORIGIN, PIECES, SCHEMA, SLOTS, WEIGHTS
from diffmoe_scale.convert.pipeline_code import digest
from diffmoe_scale.convert.pipeline_config import (
    BIASES,
    has_trained_encoder,
    threshold_names,
    transformer_tree,
)
from diffmoe_scale.convert.pipeline_tensors import from_folder
from diffmoe_scale.json_text import parse_json

logger = logging.getLogger(__name__)

LAYERS = "transformer.blocks."
READ_ERRORS = (KeyError, TypeError, AttributeError, IndexError)


def is_folder(path: Path) -> bool:
    """Whether a path is a diffusers folder of ours."""
    return (path / ORIGIN).is_file()


def open_folder(path: Path, settings: Sequence[str] = ()) -> StoredWeights:
    """Its weights under our names. Names and shapes are not compared with those of the settings' model.

    Raises: ValueError if it is of another version, incomplete or damaged.
    """
    origin = _read_json(path / ORIGIN)
    if (origin.get("format"), origin.get("schema")) != (FORMAT, SCHEMA):
        raise ValueError(
            f"{path / ORIGIN} is of {origin.get('format')!r}, schema {origin.get('schema')!r}; this version "
            f"reads {FORMAT!r}, schema {SCHEMA}"
        )
    tree = _read_json(path / "transformer" / "config.json")
    _note_changed_code(path)
    try:
        metadata = origin["metadata"]
        trees = metadata_trees(metadata)
    except (ValueError, *READ_ERRORS) as error:
        raise ValueError(f"{path} is damaged: its metadata: {type(error).__name__}: {error}") from error
    try:
        config = make_config(_with_places(parse_yaml(metadata["config"]), path), settings)
        stored = StoredWeights(
            path=path,
            tensors=_tensors(path, origin["family"], config) | _router_state(path, tree, config),
            config=config,
            step=int(metadata["step"]),
            tokenizer=_tokenizer(path, config),
            **trees,
        )
    except READ_ERRORS as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    check_formats(path, stored.tensors)
    _check_transformer(path, tree, stored)
    return stored


def _note_changed_code(path: Path) -> None:
    for file in sorted(path.rglob("diffmoe_*.py")):
        if not file.stem.endswith(digest(file.read_text(encoding="utf-8", errors="replace"))):
            logger.warning(
                "%s was changed after it was written; it is not run here, but by diffusers it is", file
            )


def _with_places(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings in which frozen networks that are not where they were are those of the folder."""
    autoencoder, text = tree.get("autoencoder", {}), tree.get("text", {})
    if autoencoder.get("path") and not Path(autoencoder["path"]).exists():
        autoencoder["path"] = str(path / "vae")
    for slot, encoder in zip(SLOTS, text.get("encoders") or (), strict=False):
        place = Path(str(encoder.get("path", "")).removeprefix(LOCAL_FOLDER))
        if encoder["kind"] == "sentencepiece" or place.exists():
            continue
        own = path / f"text_encoder{slot}"
        if encoder["kind"] == "open_clip":
            encoder |= {"path": f"{LOCAL_FOLDER}{own}", "architecture": ""}
        else:
            encoder |= {"path": str(own), "tokenizer": str(path / f"tokenizer{slot}")}
    place = Path(str(text.get("open_clip_weights", "")).removeprefix(LOCAL_FOLDER))
    if text.get("open_clip_weights") and not place.exists():
        text["open_clip_weights"] = f"{LOCAL_FOLDER}{path / 'text_encoder'}"
    return tree


def _check_transformer(path: Path, tree: Mapping[str, Any], stored: StoredWeights) -> None:
    """Raises: ValueError naming what config.json says otherwise than the settings: diffusers would build
    another model."""
    layout = (tree.get("experts") or {}).get("layout", "stacked")
    try:
        expected = parse_json(json.dumps(transformer_tree(stored, layout=layout)))
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it has no {error}") from error
    for key, value in expected.items():
        found, wanted = tree.get(key), value
        if found != wanted:
            file = path / "transformer" / "config.json"
            raise ValueError(
                f"{file}: {key} is {show(found)}; expected {show(wanted)} by the settings in {ORIGIN}"
            )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} is not complete: {path.name} is missing")
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}; expected an object")
    return tree


def read_model(folder: Path) -> tuple[dict[str, LazyTensor], dict[str, Path]]:
    """The tensors of one model's folder, and the file of each. Raises: ValueError if files are missing or
    damaged."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        tensors = read_shards(index)[1]
        places = _read_json(index)["weight_map"]
        return tensors, {name: folder / places[name] for name in tensors}
    file = folder / f"{WEIGHTS}.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder} is not complete: it has neither {file.name} nor {index.name}")
    tensors = read_tensors(file)[1]
    return tensors, dict.fromkeys(tensors, file)


def _tensors(path: Path, family: str, config: Config) -> dict[str, LazyTensor]:
    transformer, files = read_model(path / "transformer")
    text: dict[str, LazyTensor] = {}
    if has_trained_encoder(config):
        text, _ = read_model(path / f"text_encoder{SLOTS[config.text.trained_stream]}")
    own = from_folder(transformer, text, lambda name, number: read_row(files[name], name, number))
    return {f"{family}/{name}": tensor for name, tensor in sorted(own.items())}


def _router_state(path: Path, tree: Mapping[str, Any], config: Config) -> dict[str, LazyTensor]:
    """Buffers from config.json: what moves a router's decisions in a model that is used is no tensor."""
    moe, experts, blocks = config.moe, tree["experts"], config.expert_blocks
    lists: dict[str, list[Any]] = {}
    if moe.has_thresholds:
        averages, updates = threshold_names(moe.router)
        lists = {averages: experts["thresholds"], updates: experts["threshold_steps"]}
    elif blocks and moe.router == "dsmoe":
        lists = {BIASES: experts["biases"]}
    found: dict[str, LazyTensor] = {}
    for name, values in lists.items():
        if len(values) != len(blocks):
            raise ValueError(
                f"{path / 'transformer' / 'config.json'} has thresholds or biases of {len(values)} blocks; "
                f"expected {len(blocks)}"
            )
        for block, value in zip(blocks, values, strict=True):
            found[f"buffer/{LAYERS}{block}.{name}"] = LazyTensor.of(torch.tensor(value))
    return found


def _tokenizer(path: Path, config: Config) -> bytes:
    if not has_trained_encoder(config):
        return b""
    file = path / f"tokenizer{SLOTS[config.text.trained_stream]}" / PIECES
    if not file.is_file():
        raise ValueError(f"{file.parent} is not complete: {PIECES} is missing")
    return file.read_bytes()
