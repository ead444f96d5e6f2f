"""The config.json of a folder that holds one of diffusers' autoencoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any  # JSON

from diffmoe_scale.config.check import require
from diffmoe_scale.config.section import show
from diffmoe_scale.json_text import parse_json

EXPECTED = "a folder with the config.json of an autoencoder of diffusers and its safetensors weights"
MOST_BLOCKS = 16
MOST_CHANNELS = 65_536


def misfit(folder: Path, reason: str) -> ValueError:
    """The error for a folder that cannot be used."""
    return ValueError(f"autoencoder.path is {str(folder)!r}; expected {EXPECTED}; {reason}")


def read_folder(folder: Path) -> dict[str, Any]:
    """The settings in config.json. Raises: ValueError if there is none that can be read."""
    file = folder / "config.json"
    inner = next((inner for inner in ("vae", "ae") if (folder / inner / "config.json").is_file()), "")
    hint = f"; {folder / inner} has one: is it meant?" if inner else ""
    require(file.is_file(), "autoencoder.path", str(folder), f"{EXPECTED}; it has no config.json{hint}")
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise misfit(folder, f"its config.json cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise misfit(folder, f"its config.json does not parse: {error}") from error
    if not isinstance(config, dict):
        raise misfit(folder, f"its config.json holds {show(config)}, no object")
    return config


def positive(config: Mapping[str, Any], name: str, default: int) -> int:
    """A number of channels; `default` is that of diffusers' class. Raises: ValueError for anything else."""
    value = config.get(name, default)
    if type(value) is not int or not 1 <= value <= MOST_CHANNELS:
        raise ValueError(f"its config.json has {show(value)} for {name}")
    return value


def halvings(config: Mapping[str, Any], name: str, default: int) -> int:
    """By how much an encoder shrinks pictures that halves them after each block but the last; `name` has an
    entry for each block, `default` is their number in diffusers' class. Raises: ValueError."""
    blocks = config.get(name, [0] * default)
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MOST_BLOCKS:
        raise ValueError(f"its config.json has {show(blocks)} for {name}")
    return 2 ** (len(blocks) - 1)


def refuse_other_pictures(config: Mapping[str, Any], *names: str) -> None:
    """Raises: ValueError unless the pictures have three channels."""
    for name in names:
        if config.get(name, 3) != 3:
            raise ValueError(f"its config.json has {show(config[name])} for {name}; pictures have 3 channels")
