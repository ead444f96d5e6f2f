"""The tensors of a model as those of a diffusers folder, and back: names, and experts stacked or apart."""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor

TRANSFORMER, TEXT_ENCODER = "transformer.", "text_encoder."
EXPERT = re.compile(
    r"(?P<layer>blocks\.\d+\.feed_forward\.experts\.)(?P<expert>\d+)\.(?P<kind>[wb]_(in|out))"
)
STACK = re.compile(r"(?P<layer>blocks\.\d+\.feed_forward\.experts\.)(?P<kind>[wb]_(in|out))")
LINEAR = re.compile(rf"{EXPERT.pattern}\.(weight|bias)")
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
        elif layout == "separate":
            own[separate_name(found)] = tensor
        else:
            stack = f"{found['layer']}{found['kind']}"
            parts.setdefault(stack, {})[int(found["expert"])] = tensor
    own |= {name: stacked([found[number] for number in sorted(found)]) for name, found in parts.items()}
    return dict(sorted(own.items())), text


def separate_name(found: re.Match[str]) -> str:
    """`...experts.3.w_in.weight` of our `...experts.3.w_in`, `...experts.3.w_in.bias` of `b_in`."""
    letter, _, side = found["kind"].partition("_")
    return f"{found['layer']}{found['expert']}.w_{side}.{'weight' if letter == 'w' else 'bias'}"


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
        if (stack := STACK.fullmatch(name)) and tensor.shape:
            for number in range(tensor.shape[0]):
                part = LazyTensor(tensor.shape[1:], tensor.dtype, _reader(read, name, number))
                own[f"{TRANSFORMER}{stack['layer']}{number}.{stack['kind']}"] = part
        elif (linear := LINEAR.fullmatch(name)) and linear["kind"][0] == "w":
            letter = "w" if name.endswith("weight") else "b"
            kind = f"{letter}_{linear['kind'].partition('_')[2]}"
            own[f"{TRANSFORMER}{linear['layer']}{linear['expert']}.{kind}"] = tensor
        else:
            own[f"{TRANSFORMER}{name}"] = tensor
    return own


def _reader(read: ReadPart, name: str, number: int) -> Callable[[], Tensor]:
    return lambda: read(name, number)
