"""Connections that end when the other host is silent."""

import contextlib
import os
import socket
from datetime import timedelta

from diffmoe_scale.parallel.connections import end_silent_connections
from diffmoe_scale.parallel.context import ParallelContext
from tests.ranks import run_on_ranks

TIMEOUT_MS = 60_000
"""Of run_on_ranks."""


def patience_ms(connection: socket.socket) -> int:
    """0: it waits for ever."""
    if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return 0
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


def test_connections_of_now_and_those_that_a_port_accepts_later_end() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        early = stack.enter_context(socket.create_connection(server.getsockname()))
        there = stack.enter_context(server.accept()[0])
        end_silent_connections(timedelta(seconds=8))
        late = stack.enter_context(socket.create_connection(server.getsockname()))
        accepted = stack.enter_context(server.accept()[0])
        patient = [patience_ms(each) for each in (early, there, accepted, late)]
    assert patient == [8000, 8000, 8000, 0]


def test_what_is_no_connection_is_left_as_it_is() -> None:
    first, second = socket.socketpair()
    with first, second, socket.socket(type=socket.SOCK_DGRAM) as datagrams, open(os.devnull, "rb") as file:
        end_silent_connections(timedelta(seconds=8))
        assert not datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        first.send(b"x")
        assert second.recv(1) == b"x" and file.read(1) == b""


def patiences(context: ParallelContext) -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                found.append(patience_ms(connection))
    return found


def test_every_connection_of_a_rank_ends() -> None:
    for found in run_on_ranks(patiences, 2):
        assert len(found) > 4 and set(found) == {TIMEOUT_MS}
