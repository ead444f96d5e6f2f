"""Ports for programs that tests start."""

import os
import random
import socket

FIRST, EACH = 10000, 1000
"""The first port, and how many each process of the tests has: below those that a system gives to connections
by itself."""
_DICE = random.SystemRandom()


def free_port() -> int:
    """Of this machine, on every network; no other process of the same tests answers it."""
    begin = FIRST + EACH * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = begin + _DICE.randrange(EACH)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
