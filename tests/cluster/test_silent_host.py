"""A host that vanishes while others wait for it, in the time in which a slow disk may take hours."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import pytest

from diffmoe_scale.parallel.context import initialize, is_peer_failure
from diffmoe_scale.parallel.waiting import wait_for_ranks
from tests.cluster.hosts import Host, hosts
from tests.cluster.slurm import missing
from tests.ranks import _FORKSERVER

REASON = missing("ip")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(REASON), reason=REASON)]
TIMEOUT_S, LIMIT_S = 5, 40.0


def wait_on(host: Host, rank: int, world_size: int, answer: Connection) -> None:
    """Join the others, say so, wait for them, and say why that failed."""
    host.enter()
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29502",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
    }
    try:
        answer.send("began")
        context = initialize(expert_parallel=1, timeout_s=TIMEOUT_S)
        answer.send("joined")
        if rank == 0:
            time.sleep(2 * LIMIT_S)  # a slow disk
        wait_for_ranks(context.waiting_group)
    except (RuntimeError, ConnectionError) as error:
        answer.send(f"{is_peer_failure(error)} {error}")
    os._exit(0)


def told(connection: Connection) -> str:
    assert connection.poll(LIMIT_S), f"nothing in {LIMIT_S:g} s"
    return str(connection.recv())


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_others_end_after_the_time_out(world_size: int) -> None:
    """Of 3 ranks the last is never started: the others still wait for it, by the store, when one vanishes."""
    with hosts(2) as both:
        pipes = [multiprocessing.Pipe(duplex=False) for _ in both]
        ranks = [
            _FORKSERVER.Process(target=wait_on, args=(host, rank, world_size, pipes[rank][1]), daemon=True)
            for rank, host in enumerate(both)
        ]
        for process in ranks:
            process.start()
        try:
            for connection, _ in pipes:
                assert told(connection) == "began"
                assert world_size == 3 or told(connection) == "joined"
            time.sleep(1)
            both[0].cut()
            answer = told(pipes[1][0])
        finally:
            for process in ranks:
                process.kill()
                process.join()
    assert answer.startswith("True ") if world_size == 2 else "ranks did not meet at 10.77.0.1" in answer
