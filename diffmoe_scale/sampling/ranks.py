"""The ranks that draw together: who draws which picture, and what they tell each other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast  # objects travel pickled

import torch.distributed as dist

from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.waiting import wait_for_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The places of a rank's pictures, and how many it draws: more than its own where ranks share experts and
    must call the network equally often."""

    places: list[int]
    count: int


@dataclass(frozen=True)
class Ranks:
    """The ranks of a context; None is this process alone."""

    context: ParallelContext | None

    @property
    def size(self) -> int:
        return 1 if self.context is None else self.context.world_size

    @property
    def is_main(self) -> bool:
        return self.context is None or self.context.is_main

    def share(self, places: Sequence[int]) -> Share:
        """This rank's part of `places`, dealt out in turn."""
        if self.context is None:
            return Share(list(places), len(places))
        mine = list(places[self.context.rank :: self.size])
        is_equal = self.context.expert_parallel > 1
        return Share(mine, math.ceil(len(places) / self.size) if is_equal else len(mine))

    def of_main(self, find: Callable[[], T]) -> T:
        """What `find` gives on the main rank. Collective. Raises, on all ranks, what it raises there."""
        if self.context is None or self.size == 1:
            return find()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = find()
            except (ValueError, OSError, RuntimeError) as error:
                answer[1] = error
        wait_for_ranks(self.context.waiting_group)
        dist.broadcast_object_list(answer, src=0, group=self.context.control_group)
        if answer[1] is not None:
            raise cast(Exception, answer[1])
        return cast(T, answer[0])

    def gather(self, value: T) -> list[T]:
        """The values of all ranks. Collective; waits for ranks that draw longer."""
        if self.context is None or self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        wait_for_ranks(self.context.waiting_group)
        dist.all_gather_object(values, value, group=self.context.control_group)
        return values
