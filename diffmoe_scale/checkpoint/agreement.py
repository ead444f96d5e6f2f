"""Work that all ranks do together: one rank's failure is the failure of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any  # gathered Python objects

import torch.distributed as dist

from diffmoe_scale.config.check import RunError


@dataclass(frozen=True)
class _Failure:
    reason: str


def agree(group: dist.ProcessGroup, action: Callable[[], Any]) -> list[Any]:
    """Run on every rank, then give every rank all results. Collective.

    Raises: RunError on all ranks if one had an OSError.
    """
    try:
        mine: Any = action()
    except OSError as error:
        mine = _Failure(f"rank {group.rank()}: {error}")
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, mine, group=group)
    failures = [result.reason for result in everyone if isinstance(result, _Failure)]
    if failures:
        raise RunError(failures[0])
    return everyone


def share_of(group: dist.ProcessGroup, names: Sequence[str]) -> list[str]:
    """This rank's part of the names; all ranks together have each once."""
    return sorted(names)[group.rank() :: group.size()]
