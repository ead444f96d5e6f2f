"""Waiting for ranks that have other work to do, for as long as that takes."""

from datetime import timedelta

import torch.distributed as dist

LONGEST_WORK = timedelta(hours=6)
"""A rank may read or write files for so long while the others wait: a disk or a network can be slow."""


def wait_for_ranks(group: dist.ProcessGroup) -> None:
    """Return when every rank is here. Collective over `group`, the context's `waiting_group`.

    `parallel.timeout_s` is for ranks that compute. Call this after work that only some ranks have, or that
    takes one of them longer than others: files, networks, a tokenizer. A rank that died is noticed at once.

    Raises: RuntimeError if a rank died or is not here after LONGEST_WORK.
    """
    # monitored_barrier(timeout=) would not do: torch 2.14 gives that time to the first rank alone, and the
    # others wait for it no longer than the group's own.
    dist.barrier(group=group)
