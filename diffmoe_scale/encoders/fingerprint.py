"""Which network made something: a short hash of its weights and of what else decides its output."""

from hashlib import blake2b

import torch
from torch import nn


def fingerprint(module: nn.Module, *settings: object) -> str:
    """16 hexadecimal digits of names, shapes and values of a module's state, and of the settings. The device
    does not matter."""
    digest = blake2b(repr(settings).encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
