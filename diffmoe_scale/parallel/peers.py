"""Which ranks were lost, when a collective broke."""

import os
import socket
import time
from concurrent.futures import Future
from threading import Thread

import torch.distributed as dist

PATIENCE_S = 10.0
"""Ranks learn of a death within moments of each other, of a hang at the same time-out."""
LOOK_EVERY_S = 0.2
STORE_S = 5.0
"""Beyond that, for the store to answer: torch 2.14 waits without an end for one whose host went silent."""
NAMED = 8


def share_hosts(group: dist.ProcessGroup) -> tuple[str, ...]:
    """The host name of every rank, which is also left in the store of the process group. Collective over
    `group`, which is all ranks on gloo."""
    host = socket.gethostname()
    dist.distributed_c10d._get_default_store().set(_key("host", dist.get_rank()), host)
    hosts: list[str | None] = [None] * group.size()
    dist.all_gather_object(hosts, host, group=group)
    return tuple(str(host) for host in hosts)


def name_lost_ranks() -> str:
    """After a collective broke: say that this rank lives, and name those that do not say so, with their
    hosts; "" if all did. For every rank that lives, at about the same time.

    The ranks meet in the store of the main rank. Where that does not answer, the main rank is the lost one.
    """
    answer: Future[str] = Future()
    # A daemon: this process must be able to end while the store still waits.
    Thread(target=_ask_store, args=(answer,), daemon=True).start()
    try:
        return answer.result(PATIENCE_S + STORE_S)
    except (RuntimeError, ValueError, TimeoutError):
        return f"rank 0 on {os.environ['MASTER_ADDR']}"


def _ask_store(answer: Future[str]) -> None:
    try:
        answer.set_result(_find_silent_ranks())
    except Exception as error:  # of any type: whoever waits for the answer raises it
        answer.set_exception(error)


def _find_silent_ranks() -> str:
    """Raises: RuntimeError, ValueError if there is no store."""
    store = dist.distributed_c10d._get_default_store()
    store.set(_key("lives", dist.get_rank()), "")
    waiting = set(range(dist.get_world_size())) - {dist.get_rank()}
    give_up = time.monotonic() + PATIENCE_S
    while waiting and time.monotonic() < give_up:
        waiting = {other for other in waiting if not store.check([_key("lives", other)])}
        time.sleep(LOOK_EVERY_S if waiting else 0)
    named = [f"rank {rank} on {_host(store, rank)}" for rank in sorted(waiting)[:NAMED]]
    return ", ".join(named) + (f" and {len(waiting) - NAMED} more" if len(waiting) > NAMED else "")


def _host(store: dist.Store, rank: int) -> str:
    """Of a rank that may have been lost before it wrote its host, for which `get` would wait."""
    key = _key("host", rank)
    return store.get(key).decode() if store.check([key]) else "a host that it did not name"


def _key(kind: str, rank: int) -> str:
    return f"diffmoe_scale/{kind}/{rank}"
