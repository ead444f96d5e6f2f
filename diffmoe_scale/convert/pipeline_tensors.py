"""The tensors of a model as those of a diffusers folder, and back: names, and experts stacked or apart."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor

TRANSFORMER, TEXT_ENCODER = "transformer.", "text_encoder."
LAYER = r"(?P<layer>blocks\.\d+\.feed_forward\.experts\.)"
EXPERT = re.compile(rf"{LAYER}(?P<expert>\d+)\.(?P<letter>[wb])_(?P<side>in|out)")
LINEAR = re.compile(rf"{LAYER}((?P<expert>\d+)\.)?w_(?P<side>in|out)\.(?P<kind>weight|bias)")
KINDS = {"w": "weight", "b": "bias"}
LETTERS = {kind: letter for letter, kind in KINDS.items()}
Tensors = dict[str, LazyTensor]
ReadPart = Callable[[str, int], Tensor]
"""Name of a stack and number of an expert -> its part."""


def to_folder(tensors: Mapping[str, LazyTensor], *, layout: str) -> tuple[Tensors, Tensors]:
    """The transformer's tensors, and those of the text encoder that was trained along (none without)."""
    text = {
        name.removeprefix(TEXT_ENCODER): tensor
        for name, tensor in tensors.items()
        if name.startswith(TEXT_ENCODER)
    }
    own: Tensors = {}
    parts: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(TRANSFORMER):
            continue
        name = name.removeprefix(TRANSFORMER)
        found = EXPERT.fullmatch(name)
        if found is None:
            own[name] = tensor
            continue
        linear = f"w_{found['side']}.{KINDS[found['letter']]}"
        if layout == "separate":
            own[f"{found['layer']}{found['expert']}.{linear}"] = tensor
        else:
            parts.setdefault(f"{found['layer']}{linear}", {})[int(found["expert"])] = tensor
    own |= {name: stacked([found[number] for number in sorted(found)]) for name, found in parts.items()}
    return dict(sorted(own.items())), text


def stacked(parts: Sequence[LazyTensor]) -> LazyTensor:
    """One tensor [E, ...], filled part by part."""
    shape = (len(parts), *parts[0].shape)

    def read() -> Tensor:
        whole = torch.empty(shape, dtype=parts[0].dtype)
        for number, part in enumerate(parts):
            whole[number] = part.read()
        return whole

    return LazyTensor(shape, parts[0].dtype, read)


def from_folder(
    transformer: Mapping[str, LazyTensor], text: Mapping[str, LazyTensor], read: ReadPart
) -> Tensors:
    """Ours, from the tensors of a folder in any layout; `read` reads one expert's part of a stack."""
    own: Tensors = {f"{TEXT_ENCODER}{name}": tensor for name, tensor in text.items()}
    for name, tensor in transformer.items():
        found = LINEAR.fullmatch(name)
        if found is None:
            own[f"{TRANSFORMER}{name}"] = tensor
            continue
        layer, end = f"{TRANSFORMER}{found['layer']}", f"{LETTERS[found['kind']]}_{found['side']}"
        if found["expert"] is not None:
            own[f"{layer}{found['expert']}.{end}"] = tensor
            continue
        for number in range(tensor.shape[0] if tensor.shape else 0):
            part = LazyTensor(tensor.shape[1:], tensor.dtype, _reader(read, name, number))
            own[f"{layer}{number}.{end}"] = part
    return own


def _reader(read: ReadPart, name: str, number: int) -> Callable[[], Tensor]:
    return lambda: read(name, number)
