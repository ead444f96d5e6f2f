"""Files of torch.save, read so that they run no code: tensors, and the arguments of a training as plain
values."""

import argparse
import logging
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

logger = logging.getLogger(__name__)

State = dict[str, LazyTensor]
SINGLE_KEYS = ("ema", "model", "state_dict")
WRAPPERS = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class TorchFile:
    """State dicts by family (`master`, `ema`), and the arguments of a training checkpoint; None without."""

    states: dict[str, State]
    arguments: dict[str, Any] | None = None
    is_training: bool = False
    other: list[str] = field(default_factory=list)
    """What else there is, such as an optimizer's state; it is not converted."""


def read_torch_file(path: Path) -> TorchFile:
    """A training checkpoint {model, ema, opt, args}, or one state dict, which counts as averaged weights:
    bare, or under one of SINGLE_KEYS.

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
    one = next((key for key in SINGLE_KEYS if isinstance(content.get(key), Mapping)), "")
    if not one:
        return TorchFile({"ema": _state(path, content, "the file")})
    other = sorted(str(key) for key in content.keys() - {one})
    return TorchFile({"ema": _state(path, content[one], one)}, other=other)


def load_plain(path: Path) -> Any:  # whatever it holds
    """What a file of torch.save holds. Raises: ValueError if it is damaged or names code."""
    if zipfile.is_zipfile(path):
        _check_archive(path)
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
        raise ValueError(
            f"{path} is no file of torch.save, or is damaged ({type(error).__name__}: {text})"
        ) from error


def _check_archive(path: Path) -> None:
    """Raises: ValueError for an archive that is of another program, or of TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is no file of torch.save, or is damaged ({error})") from error
    if "constants.pkl" in names:
        raise ValueError(
            f"{path} is a TorchScript program, which is code; expected the state dict of a model"
        )
    if "data.pkl" not in names:
        raise ValueError(f"{path} is an archive that torch.save did not write; expected a state dict")


def _state(path: Path, found: object, name: str) -> State:
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: {name} is a {type(found).__name__}; expected a state dict with tensors")
    wrong = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(
            f"{path}: {name} holds more than tensors, such as {', '.join(wrong[:5])}; expected a state dict, "
            f"by itself or as one of {', '.join(SINGLE_KEYS)}"
        )
    for key, tensor in found.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "on meta, without values" if tensor.is_meta else "sparse, quantized or packed"
            raise ValueError(
                f"{path}: {key} is {kind}; expected a plain tensor: save its numbers as they are"
            )
    return without_wrappers(path, {str(key): LazyTensor.of(value) for key, value in found.items()})


def without_wrappers(path: Path, state: State) -> State:
    """The state dict without the names by which DistributedDataParallel (`module.`) and torch.compile
    (`_orig_mod.`) begin all of a model's; says so."""
    removed = ""
    while word := next((one for one in WRAPPERS if all(name.startswith(one) for name in state)), ""):
        state = {name.removeprefix(word): tensor for name, tensor in state.items()}
        removed += word
    if removed:
        logger.warning("%s: names are read without %r at their beginning", path, removed)
    return state


def write_torch_file(path: Path, states: Mapping[str, State], arguments: Mapping[str, Any] | None) -> None:
    """The way back: {model, ema, opt, args} of two families, the bare state dict of one; a tensor is in
    memory at a time. Raises: OSError."""
    content: dict[str, Any] = dict(next(iter(states.values())))
    if len(states) == 2:
        namespace = None if arguments is None else argparse.Namespace(**arguments)
        content = {"model": dict(states["master"]), "ema": dict(states["ema"]), "opt": {}, "args": namespace}
    write_torch_archive(path, content)
