"""Files of torch.save, read so that they run no code: tensors, and the arguments of a training as plain
values."""

import argparse
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any  # what a file holds

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.torch_archive import write_torch_archive

State = dict[str, LazyTensor]


@dataclass(frozen=True)
class TorchFile:
    """State dicts by family (`master`, `ema`), and the arguments of a training checkpoint; None without."""

    states: dict[str, State]
    arguments: dict[str, Any] | None = None
    is_training: bool = False
    other: list[str] = field(default_factory=list)
    """What else there is, such as an optimizer's state; it is not converted."""


def read_torch_file(path: Path) -> TorchFile:
    """A training checkpoint {model, ema, opt, args}, or a bare state dict, which counts as averaged weights.

    Raises: ValueError if the file is damaged, holds more than tensors and plain values, or neither of these.
    """
    content = load_plain(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict")
    if "model" in content and "ema" in content:
        states = {
            "master": _state(path, content["model"], "model"),
            "ema": _state(path, content["ema"], "ema"),
        }
        arguments = content.get("args")
        is_namespace = isinstance(arguments, argparse.Namespace)
        return TorchFile(
            states,
            arguments=dict(vars(arguments)) if is_namespace else None,
            is_training=True,
            other=sorted(str(key) for key in content.keys() - {"model", "ema", "args"}),
        )
    return TorchFile({"ema": _state(path, content, "the file")})


def load_plain(path: Path) -> Any:  # whatever it holds
    """What a file of torch.save holds. Raises: ValueError if it is damaged or names code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        text = " ".join(str(error).split())
        name = (
            text.partition("GLOBAL ")[2].partition(" ")[0] or text.partition("global ")[2].partition(" ")[0]
        )
        reason = f"it names {name}" if name else "torch.save did not write it"
        raise ValueError(
            f"{path} is refused: {reason}; expected tensors and plain values, as loading anything else would "
            "run the file's code"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        text = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} is no file of torch.save, or is damaged: {text}") from error


def _state(path: Path, found: object, name: str) -> State:
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: {name} is a {type(found).__name__}; expected a state dict with tensors")
    wrong = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f"{path}: {name} holds more than tensors, such as {', '.join(wrong[:5])}; expected a state dict"
        )
    return {str(key): LazyTensor.of(value) for key, value in found.items()}


def write_torch_file(path: Path, states: Mapping[str, State], arguments: Mapping[str, Any] | None) -> None:
    """The way back: {model, ema, opt, args} of two families, the bare state dict of one; a tensor is in
    memory at a time. Raises: OSError."""
    content: dict[str, Any] = dict(next(iter(states.values())))
    if len(states) == 2:
        namespace = None if arguments is None else argparse.Namespace(**arguments)
        content = {"model": dict(states["master"]), "ema": dict(states["ema"]), "opt": {}, "args": namespace}
    write_torch_archive(path, content)
