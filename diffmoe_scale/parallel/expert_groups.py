"""Which parameters are experts, for DeepSpeed."""

from collections.abc import Iterable

import torch.distributed as dist
from deepspeed.utils import groups
from torch import nn

from diffmoe_scale.parallel.context import ParallelContext


def register_expert_groups(context: ParallelContext, parameters: Iterable[nn.Parameter]) -> None:
    """Tell DeepSpeed which parameters are experts spread over `ep_group`, and over which ranks each is
    replicated.

    Without it, ZeRO would broadcast rank 0's experts to all ranks and average different experts, without an
    error.
    """
    name = f"ep_size_{context.expert_parallel}"
    for by_name, group in (
        (groups._EXPERT_PARALLEL_GROUP, context.ep_group),
        (groups._EXPERT_DATA_PARALLEL_GROUP, context.expert_dp_group),
    ):
        by_name[name] = group
    for by_name, group in (
        (groups._EXPERT_PARALLEL_GROUP_RANKS, context.ep_group),
        (groups._EXPERT_DATA_PARALLEL_GROUP_RANKS, context.expert_dp_group),
    ):
        by_name[name] = dist.get_process_group_ranks(group)
    for parameter in parameters:
        parameter.allreduce = False  # type: ignore[attr-defined]  # a mark that DeepSpeed reads
        parameter.group_name = name  # type: ignore[attr-defined]  # a mark that DeepSpeed reads
