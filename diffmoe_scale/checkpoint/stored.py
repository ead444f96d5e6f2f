"""Weights as they lie on disk, for readers of one process: those of a run, or exported ones, by
`family/name`.

An export is one safetensors file, or a folder of several with an index; its metadata hold what a run
directory has in other files: settings, step, tokenizer.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal  # Any: JSON trees

from diffmoe_scale.checkpoint.convertible import refuse_convertible
from diffmoe_scale.checkpoint.manifest import MOST_SHOWN, complete_checkpoints, find_damage, read_manifest
from diffmoe_scale.checkpoint.tensor_file import INDEX, SINGLE, LazyTensor, read_files
from diffmoe_scale.checkpoint.tensor_reader import TensorReader
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.config.load import dump_config, make_config
from diffmoe_scale.config.origin import mark_foreign
from diffmoe_scale.config.run_directory import RunDirectory, run_of_checkpoint
from diffmoe_scale.config.schema import Config
from diffmoe_scale.config.yaml_file import parse_yaml, read_yaml
from diffmoe_scale.json_text import parse_json

FORMAT, SCHEMA = "diffmoe_scale weights", "1"
FAMILIES = ("master", "ema", "ema2", "buffer")
"""What a model is: weights of the last step, averaged weights of one or two decays, thresholds. An export may
also hold `source`: what its foreign origin had and this model has not."""
KEPT = ("buffer/", "source/")
"""What an export holds beside weights."""


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """Weights on disk; `tensors` are read when asked for."""

    path: Path
    tensors: Mapping[str, LazyTensor]
    """By `family/name`."""
    config: Config
    settings: Mapping[str, Any]
    """The identity of the model, as in a checkpoint's manifest."""
    step: int = 0
    tokenizer: bytes = b""
    """The sentencepiece model; empty where there is none."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Of converted weights: format and arguments of what they were converted from."""
    layout: Mapping[str, int] = field(default_factory=dict)

    @property
    def families(self) -> list[str]:
        return [name for name in FAMILIES if any(key.startswith(f"{name}/") for key in self.tensors)]

    def family(self, name: str) -> dict[str, LazyTensor]:
        """The tensors of a family, without its name."""
        start = f"{name}/"
        return {
            key.removeprefix(start): tensor for key, tensor in self.tensors.items() if key.startswith(start)
        }


When = Literal["now", "when read", "never"]
"""When the files of a checkpoint are compared with their check sums: `when read` is each file before the
first of its tensors is read, so that a disk reads it once."""


def open_weights(path: Path, settings: Sequence[str] = (), *, check_files: When = "now") -> StoredWeights:
    """The weights of a run directory (newest complete checkpoint), of one of its `checkpoints/step_N`
    folders, or of an export. `settings` override the config's.

    Raises: ValueError if it is none of these, is damaged, or its config is of another model; a later read of
    a tensor raises so, too, for a file that is damaged.
    """
    refuse_convertible(path)
    if is_export(path):
        return open_export(path, settings)
    run = run_of_checkpoint(path)
    directory = run or RunDirectory(path)
    if not directory.config.is_file():
        raise ValueError(_why_no_weights(path, directory))
    checkpoints = [path] if run else complete_checkpoints(directory.checkpoints)
    if not checkpoints:
        raise ValueError(f"{directory.checkpoints} holds no complete checkpoint; train first")
    return open_checkpoint(checkpoints[-1], directory, settings, check_files=check_files)


def _why_no_weights(path: Path, directory: RunDirectory) -> str:
    """Of a path without a run's config.yaml."""
    if directory.checkpoints.is_dir():
        return f"{directory.config} is missing: restore it, it says what the weights are of"
    if path.name == "checkpoints" and RunDirectory(path.parent).config.is_file():
        return (
            f"{path} is the folder of a run's checkpoints; give {path.parent}, or one of its step_N folders"
        )
    expected = (
        "expected a run directory with config.yaml, one of its checkpoints/step_N folders, a .safetensors "
        f"file, or a folder with {SINGLE} or {INDEX}"
    )
    files = sorted(file.name for file in path.glob("*.safetensors")) if path.is_dir() else []
    held = f" under such a name, but {', '.join(files[:MOST_SHOWN])}" if files else ""
    return f"{path} holds no weights{held}; {expected}"


def is_export(path: Path) -> bool:
    """Whether a path is one of safetensors files, and not a run."""
    return path.is_file() or (path / INDEX).is_file() or (path / SINGLE).is_file()


def open_checkpoint(
    checkpoint: Path, directory: RunDirectory, settings: Sequence[str] = (), *, check_files: When = "now"
) -> StoredWeights:
    """One checkpoint of a run. Raises: ValueError."""
    manifest = read_manifest(checkpoint)
    names = manifest.files if check_files != "never" else ()
    if damage := find_damage(checkpoint, manifest, names, is_read=check_files == "now"):
        raise ValueError(f"{checkpoint} is damaged: {'; '.join(damage[:MOST_SHOWN])}")
    config = make_config(read_yaml(directory.config), settings)
    identity = model_settings(config, tokenizer=directory.tokenizer, frozen={})
    if changed := different_settings(manifest.settings, identity):
        raise ValueError(f"{directory.config} is of another model than {checkpoint}: {'; '.join(changed)}")
    reader = TensorReader(checkpoint, manifest if check_files == "when read" else None)
    tensors = {name: reader.tensor(name, shape) for name, shape in manifest.shapes.items()}
    check_formats(checkpoint, tensors)
    return StoredWeights(
        path=checkpoint,
        tensors=tensors,
        config=config,
        settings=manifest.settings or identity,
        step=manifest.step,
        tokenizer=directory.tokenizer.read_bytes() if directory.tokenizer.is_file() else b"",
        layout=manifest.layout,
    )


def different_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`moe.gate was 'softmax', is 'sigmoid'` for each setting of a model's identity that differs.
    Fingerprints of frozen networks count only where both have them."""
    return [
        f"{section}.{key} was {value!r}, is {now.get(section, {}).get(key)!r}"
        for section, entries in before.items()
        for key, value in entries.items()
        if (key != "fingerprint" or key in now.get(section, {})) and now.get(section, {}).get(key) != value
    ]


def export_metadata(stored: StoredWeights) -> dict[str, str]:
    """What an export's files say of it; `open_export` reads it."""
    texts = {
        "format": FORMAT,
        "schema": SCHEMA,
        "step": str(stored.step),
        "config": dump_config(stored.config),
        "settings": json.dumps(stored.settings),
        "layout": json.dumps(dict(stored.layout)),
    }
    if stored.tokenizer:
        texts["tokenizer"] = base64.b64encode(stored.tokenizer).decode()
    if stored.origin:
        texts["origin"] = json.dumps(stored.origin)
    return texts


def open_export(path: Path, settings: Sequence[str] = (), *, is_foreign: bool = False) -> StoredWeights:
    """An export. `is_foreign`: no command among the shards that its config names is run.

    Raises: ValueError if it is none, incomplete or damaged.
    """
    refuse_convertible(path)
    if path.is_file() and path.name != SINGLE and path.with_name(INDEX).is_file():
        raise ValueError(f"{path} is one of several files of a model; give {path.parent}")
    metadata, tensors = read_files(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no export of this program: its metadata name no format {FORMAT!r}; "
            "tools/convert_checkpoint.py makes one of it"
        )
    if metadata.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {metadata.get('schema')}; this version reads schema {SCHEMA}")
    return stored_of_metadata(path, metadata, tensors, settings, is_foreign=is_foreign)


def _is_valid(text: str) -> bool:
    """Whether a config is one without further settings."""
    try:
        make_config(parse_yaml(text))
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _check_families(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises: ValueError unless there are weights, and every tensor is of a family that is known."""
    families = {name.partition("/")[0] for name in tensors}
    wrong = [name for name in tensors if name.partition("/")[0] not in (*FAMILIES, "source")]
    if wrong or not families & {"master", "ema", "ema2"}:
        found = f"has tensors such as {', '.join(wrong[:MOST_SHOWN])}" if wrong else "holds no weights"
        raise ValueError(f"{path} {found}; expected names that begin with one of {', '.join(FAMILIES)}")


def check_formats(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Raises: ValueError for weights that are no floating-point numbers."""
    for name, tensor in tensors.items():
        if not (tensor.dtype.is_floating_point or name.startswith(KEPT)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{path}: {name} is {kind}; expected floating-point numbers")


def metadata_trees(metadata: Mapping[str, str]) -> dict[str, Any]:
    """`settings`, `origin` and `layout`. Raises: KeyError, TypeError, AttributeError, ValueError."""
    texts = {"origin": "{}", "layout": "{}", **metadata}
    return {name: parse_json(texts[name]) for name in ("settings", "origin", "layout")}


def stored_of_metadata(
    path: Path,
    metadata: Mapping[str, str],
    tensors: Mapping[str, LazyTensor],
    settings: Sequence[str] = (),
    *,
    is_foreign: bool = False,
) -> StoredWeights:
    """Tensors, and what `export_metadata` said of them. Raises: ValueError."""
    if missing := [key for key in ("config", "settings", "step") if key not in metadata]:
        raise ValueError(f"{path} is damaged: its metadata have no {', '.join(missing)}")
    _check_families(path, tensors)
    check_formats(path, tensors)
    try:
        tree = parse_yaml(metadata["config"])
        if is_foreign:
            mark_foreign(tree)
        stored = StoredWeights(
            path=path,
            tensors=tensors,
            config=make_config(tree, settings),
            step=int(metadata["step"]),
            tokenizer=base64.b64decode(metadata.get("tokenizer", ""), validate=True),
            **metadata_trees(metadata),
        )
        sections = [stored.origin, stored.layout, *stored.settings.values()]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"{path} is damaged: its metadata: {type(error).__name__}: {error}") from error
    except ValueError as error:
        is_of_words = settings and _is_valid(metadata["config"])
        raise ValueError(str(error) if is_of_words else f"{path}: its metadata: {error}") from error
    if not all(isinstance(section, dict) for section in sections):
        raise ValueError(f"{path} is damaged: its metadata hold no settings")
    return stored
