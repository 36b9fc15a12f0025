"""Ports of this machine: free ones, and whether somebody listens there."""

from __future__ import annotations

import contextlib
import random
import socket

LOCAL = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def quiet_port() -> int:
    """A free port that stays free while nobody listens there: none of those that the kernel gives away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((LOCAL, port)):
            return port


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) != 0
