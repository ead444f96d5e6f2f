"""A part of a tensor that is spread over ranks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """What a rank owns of a tensor of `shape`: the elements from `start` on in its flat order, as flat
    `values`."""

    values: Tensor
    start: int
    shape: tuple[int, ...]

    @staticmethod
    def whole(tensor: Tensor) -> "Slice":
        return Slice(tensor.detach().view(-1), start=0, shape=tuple(tensor.shape))
