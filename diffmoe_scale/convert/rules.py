"""How one tensor of ours is made of foreign ones, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffmoe_scale.checkpoint.tensor_file import LazyTensor


@dataclass(frozen=True)
class Rule:
    """`forward` makes our tensor of the foreign ones, `backward` the foreign ones of ours. What `is_exact`
    comes back to the bit."""

    ours: str
    theirs: tuple[str, ...]
    forward: Callable[[Sequence[LazyTensor]], LazyTensor]
    backward: Callable[[LazyTensor], list[LazyTensor]]
    is_exact: bool = True


def same(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), lambda parts: parts[0], lambda tensor: [tensor])


def reshaped(ours: str, theirs: str, *, ours_shape: Sequence[int], theirs_shape: Sequence[int]) -> Rule:
    return Rule(
        ours,
        (theirs,),
        lambda parts: parts[0].view(*ours_shape),
        lambda tensor: [tensor.view(*theirs_shape)],
    )


def joined(ours: str, *theirs: str) -> Rule:
    """Ours is theirs, one behind the other, in equal parts of the first dimension."""

    def forward(parts: Sequence[LazyTensor]) -> LazyTensor:
        rows = sum(part.shape[0] for part in parts)
        read = lambda: torch.cat([part.read() for part in parts])  # noqa: E731 # it has no name but `read`
        return LazyTensor((rows, *parts[0].shape[1:]), parts[0].dtype, read)

    def part(number: int) -> Callable[[Tensor], Tensor]:
        # A copy: a view would keep the whole.
        return lambda whole: whole.chunk(len(theirs))[number].clone()

    def backward(tensor: LazyTensor) -> list[LazyTensor]:
        shape = (tensor.shape[0] // len(theirs), *tensor.shape[1:])
        return [tensor.map(part(number), shape) for number in range(len(theirs))]

    return Rule(ours, theirs, forward, backward)


def computed(
    ours: str,
    theirs: str,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    *,
    ours_shape: Sequence[int],
    theirs_shape: Sequence[int],
    is_exact: bool = False,
) -> Rule:
    return Rule(
        ours,
        (theirs,),
        lambda parts: parts[0].map(forward, ours_shape),
        lambda tensor: [tensor.map(backward, theirs_shape)],
        is_exact,
    )
