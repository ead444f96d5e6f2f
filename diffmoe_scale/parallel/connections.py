"""Connections to a host that went silent: found by TCP itself, without a thread."""

import contextlib
import os
import socket
from datetime import timedelta

PROBES = 3


def end_silent_connections(timeout: timedelta) -> None:
    """Have the kernel close each TCP connection of this process whose other host says nothing for `timeout`.

    A host without power, or behind a cut link, closes nothing: who waits for it in a group that is patient
    (LONGEST_WORK), or in the store, whose client of torch 2.14 has no time-out, would wait for hours. Here
    the wait fails as if the other process had died. A process that is slow or stopped is left in peace: its
    kernel answers.

    Holds for the connections of now, and for those that a port of now accepts: call it after groups are made.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a file, or one that another thread has just closed
            connection = socket.socket(fileno=int(name))  # not a copy: detached below
            try:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    _watch(connection, timeout)
            finally:
                connection.detach()


def _watch(connection: socket.socket, timeout: timedelta) -> None:
    """Raises: OSError if it is not of TCP."""
    every_s = max(1, int(timeout.total_seconds()) // (PROBES + 1))
    options = (
        (socket.TCP_KEEPIDLE, every_s),
        (socket.TCP_KEEPINTVL, every_s),
        (socket.TCP_KEEPCNT, PROBES),
        # Of data that were sent and not acknowledged: there are no probes then.
        (socket.TCP_USER_TIMEOUT, int(timeout.total_seconds() * 1000)),
    )
    for option, value in options:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
