"""One of many ranks in one process: collectives that answer at once, for tensors on `meta`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from diffmoe_scale.moe.layer import single_rank_groups


@contextmanager
def expert_groups(expert_parallel: int) -> Iterator[ProcessGroupCollection]:
    """The groups of the first of `expert_parallel` ranks that share one set of experts. Not in a process that
    has joined a group."""
    groups = single_rank_groups()
    if expert_parallel == 1:
        yield groups
        return
    # Registers the backend "fake"; torch has it for tests of its own.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=expert_parallel)
    try:
        groups.ep = dist.group.WORLD
        yield groups
    finally:
        dist.destroy_process_group()
