"""The features of all pictures, for metrics that compare pictures one by one.

B pictures of a batch, N of all, R rows of a block, F features.
"""

from array import array
from typing import Any  # objects travel pickled

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK_BYTES = 2**25
"""Small tensors would leave holes in malloc's heap when they are freed; from 32 MiB on memory goes back."""


class Places:
    """The places of pictures in the order in which they came. Kept as one growing array: a small tensor for
    each batch would lie between the batches' features and keep malloc from using their memory again."""

    def __init__(self) -> None:
        self.numbers = array("q")

    def add(self, places_B: Tensor) -> None:
        self.numbers.extend(places_B.tolist())

    def __len__(self) -> int:
        return len(self.numbers)

    def tensor(self) -> Tensor:
        """[N], int64; a copy."""
        return torch.tensor(self.numbers.tolist(), dtype=torch.int64)


class Rows:
    """Features in float32, in the order of the pictures' places whatever order they came in."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.places = Places()
        self.blocks: list[Tensor] = []
        self.rows_of_block = max(1, BLOCK_BYTES // (4 * max(1, width)))
        self.count = 0

    def update(self, features_BF: Tensor, places_B: Tensor) -> None:
        self.places.add(places_B)
        for start in range(0, len(features_BF), self.rows_of_block):
            self._append(features_BF[start : start + self.rows_of_block])

    def _append(self, features_BF: Tensor) -> None:
        """At most a block."""
        first = self.count % self.rows_of_block
        if first == 0:
            self.blocks.append(torch.empty(self.rows_of_block, self.width))
        fits_BF, rest_BF = features_BF.tensor_split([self.rows_of_block - first])
        self.blocks[-1][first : first + len(fits_BF)] = fits_BF
        self.count += len(fits_BF)
        if len(rest_BF):
            self._append(rest_BF)

    def merge(self, group: dist.ProcessGroup) -> None:
        """Send all rows to the group's first rank. Collective over a gloo group; the others keep theirs."""
        everyone: list[Any] = [None] * group.size()
        dist.all_gather_object(everyone, self.places, group=group)
        if group.rank() > 0:
            for first, block_RF in zip(range(0, self.count, self.rows_of_block), self.blocks, strict=True):
                dist.send(block_RF[: self.count - first], group=group, group_dst=0)
            return
        for rank in range(1, group.size()):
            places_N = everyone[rank].tensor()
            for places_B in places_N.split(self.rows_of_block) if len(places_N) else ():
                block_RF = torch.empty(len(places_B), self.width)
                dist.recv(block_RF, group=group, group_src=rank)
                self.update(block_RF, places_B)

    def gather(self) -> Tensor:
        """[N, F]. Block by block is moved, so that the features are not held twice."""
        places_N = self.places.tensor()
        if not len(places_N):
            return torch.empty(0, self.width)
        ranks_N = torch.empty_like(places_N)
        ranks_N[places_N.argsort()] = torch.arange(len(places_N))
        if len(self.blocks) == 1 and (places_N[1:] > places_N[:-1]).all():
            return self.blocks[0][: self.count]
        rows_NF, ranks = torch.empty(len(places_N), self.width), list(ranks_N.split(self.rows_of_block))
        while self.blocks:
            ranks_R = ranks.pop()
            rows_NF[ranks_R] = self.blocks.pop()[: len(ranks_R)]
        self.places = Places()
        self.places.add(places_N.sort().values)
        self.blocks, self.rows_of_block = [rows_NF], len(places_N)
        return rows_NF
