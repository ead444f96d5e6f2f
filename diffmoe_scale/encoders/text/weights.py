"""Weights of safetensors files, mapped into memory, into a network that was built on `meta`.

A tensor that is taken as it is stored stays a view of the mapped file: all processes of a machine share one
copy of it in the page cache. One that goes to a GPU or to another number format is copied, one at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from typing import Any  # safetensors' archives carry no types

import safetensors
import torch
from torch import Tensor, nn

from diffmoe_scale.encoders.text.folder import ModelFolder

PREFIXES = ("", "model.", "language_model.model.", "model.language_model.", "language_model.")
"""What a larger model that holds the text model puts before its names."""
ALIASES = {"shared.weight": "encoder.embed_tokens.weight"}
"""Another name of a tensor that two modules share."""
SHOWN_NAMES = 3


class StoredWeights:
    """The tensors of a folder by name, unread."""

    def __init__(self, folder: ModelFolder, stack: ExitStack) -> None:
        self.folder = folder
        self.archives: dict[str, Any] = {}
        for path in folder.weights:
            try:
                archive = stack.enter_context(safetensors.safe_open(path, "pt"))
                self.archives |= dict.fromkeys(archive.keys(), archive)
            except (OSError, safetensors.SafetensorError) as error:
                raise folder.error(
                    f"its {path.name} cannot be read as safetensors ({error}); restore it from a copy"
                ) from error

    def names_for(self, network: nn.Module) -> dict[str, str]:
        """The stored name of each parameter. Raises: ValueError for missing tensors and other shapes."""
        parameters = dict(network.named_parameters())
        found = max((self._with_prefix(parameters, prefix) for prefix in PREFIXES), key=len)
        if missing := [name for name in parameters if name not in found]:
            raise self.folder.error(
                f"its weights lack {len(missing)} of {len(parameters)} tensors of a "
                f"{self.folder.model_type} model, such as {', '.join(missing[:SHOWN_NAMES])}; expected all: "
                "they are incomplete, or of another architecture than config.json says"
            )
        for name, stored in found.items():
            shape, expected = self._shape(stored), tuple(parameters[name].shape)
            if shape != expected:
                raise self.folder.error(
                    f"its tensor {stored} has shape {shape}; expected {expected} by its config.json"
                )
        return found

    def _with_prefix(self, parameters: dict[str, nn.Parameter], prefix: str) -> dict[str, str]:
        found = {}
        for name in parameters:
            candidates = [f"{prefix}{name}", f"{prefix}{ALIASES.get(name, name)}"]
            stored = next((candidate for candidate in candidates if candidate in self.archives), None)
            if stored is not None:
                found[name] = stored
        return found

    def _shape(self, stored: str) -> tuple[int, ...]:
        return tuple(self.archives[stored].get_slice(stored).get_shape())

    def number_formats(self, names: dict[str, str]) -> set[str]:
        """As safetensors calls them: F16, BF16, F32."""
        return {self.archives[stored].get_slice(stored).get_dtype() for stored in names.values()}

    def read(self, stored: str) -> Tensor:
        tensor: Tensor = self.archives[stored].get_tensor(stored)
        return tensor


@contextmanager
def open_weights(folder: ModelFolder) -> Iterator[StoredWeights]:
    """Raises: ValueError for files that are no safetensors."""
    with ExitStack() as stack:
        yield StoredWeights(folder, stack)


def fill(network: nn.Module, weights: StoredWeights, device: torch.device, dtype: torch.dtype) -> None:
    """Give each parameter of a network on `meta` its stored values, on the device in a format."""
    stored_names = weights.names_for(network)
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    for names in places.values():
        tensor = weights.read(stored_names[names[0]]).to(device, dtype)
        parameter = nn.Parameter(tensor, requires_grad=False)
        for name in names:
            module_name, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(module_name), leaf, parameter)
    for module_name, module in network.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert not buffer.is_meta, f"{module_name}.{name} has no value"
            setattr(module, name, buffer.to(device))


def digest_weights(weights: StoredWeights, names: dict[str, str], *settings: object) -> str:
    """16 hexadecimal digits of the tensors that a network takes, and of settings."""
    digest = blake2b(repr(settings).encode(), digest_size=8)
    for name in sorted(names):
        tensor = weights.read(names[name])
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
