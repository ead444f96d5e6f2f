"""Random numbers that depend on a seed and a name only, so that no layout of ranks changes a weight."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def named_generator(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator determined by `seed` and `name`, for example `(seed, layer_index, "experts", 5)`."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator of the CPU starts at `seed` inside, and is what it was before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def draw_defaults(module: nn.Module) -> None:
    """torch's own initial weights for every linear, embedding and norm of `module`, in their order, from
    torch's generator of the CPU: what their constructors draw where they are not on `meta`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm):
            layer.reset_parameters()
