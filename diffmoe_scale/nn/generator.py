"""Random numbers that depend on a name only, so that no layout of ranks changes a weight."""

import hashlib

import torch


def named_generator(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator determined by `seed` and `name`, for example `(seed, layer_index, "experts", 5)`."""
    digest = hashlib.blake2b(repr((seed, *name)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
