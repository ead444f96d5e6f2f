"""Run a function on several gloo ranks of this machine, for tests that compare one process with many."""

import multiprocessing
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any  # the functions under test return whatever they compare

import torch

_FORKSERVER = multiprocessing.get_context("forkserver")
# Imported once in a server that has run nothing, then forked: a rank starts in milliseconds, and no OpenMP
# pool is inherited.
_FORKSERVER.set_forkserver_preload(
    ["torch", "deepspeed", "megatron.core.parallel_state", "diffmoe_scale.train.run"]
)


def _rank_main(
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    expert_parallel: int,
    sequence_parallel: int,
    store: str,
    results: Any,
    args: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",  # never used: the ranks meet through a file
    }
    torch.set_num_threads(1)
    try:
        import torch.distributed as dist

        from diffmoe_scale.parallel.context import initialize

        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
        context = initialize(
            expert_parallel=expert_parallel, sequence_parallel=sequence_parallel, timeout_s=60
        )
        results.put((rank, True, fn(context, *args)))
        dist.barrier()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
        raise


def start_ranks(
    fn: Callable[..., Any],
    world_size: int,
    folder: str,
    *args: Any,
    expert_parallel: int = 1,
    sequence_parallel: int = 1,
) -> tuple[list[Any], Any]:
    """Processes, which meet in a file in `folder`, and the queue of their (rank, is_good, answer or
    traceback)."""
    results = _FORKSERVER.Queue()
    store = os.path.join(folder, "store")
    ranks = [
        _FORKSERVER.Process(
            target=_rank_main,
            args=(fn, rank, world_size, expert_parallel, sequence_parallel, store, results, args),
            daemon=True,
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks, results


def run_on_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    expert_parallel: int = 1,
    sequence_parallel: int = 1,
    timeout_s: float = 240,
) -> list[Any]:
    """`[fn(context, *args) on rank r for r in range(world_size)]`; fn is a module-level function.

    Results come back by pickling: return numpy arrays or plain values for large tensors. Raises
    AssertionError with the traceback of the first rank that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"expert_parallel": expert_parallel, "sequence_parallel": sequence_parallel}
        ranks, results = start_ranks(fn, world_size, folder, *args, **sizes)
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        try:
            while len(answers) < world_size:
                try:
                    rank, is_good, answer = results.get(timeout=0.5)
                except queue.Empty:
                    assert time.monotonic() < deadline, (
                        f"ranks {sorted(set(range(world_size)) - set(answers))} gave no answer in "
                        f"{timeout_s} s"
                    )
                    dead = [
                        r
                        for r, process in enumerate(ranks)
                        if process.exitcode not in (None, 0) and r not in answers
                    ]
                    assert not dead or not results.empty(), (
                        f"rank {dead} died with exit codes {[ranks[r].exitcode for r in dead]}"
                    )
                    continue
                assert is_good, f"rank {rank}:\n{answer}"
                answers[rank] = answer
            for process in ranks:
                process.join(10)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                process.join()
    return [answers[rank] for rank in range(world_size)]


def run_alone(fn: Callable[..., Any], *args: Any, timeout_s: float = 240) -> Any:
    """`fn(*args)` in a process of its own, which has joined no group; fn is a module-level function."""
    with ProcessPoolExecutor(
        1, mp_context=_FORKSERVER, initializer=torch.set_num_threads, initargs=(1,)
    ) as executor:
        return executor.submit(fn, *args).result(timeout_s)
