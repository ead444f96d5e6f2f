"""Ports for programs that tests start."""

import socket


def free_port() -> int:
    """Of this machine, on every network."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
