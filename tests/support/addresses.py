"""Ports of this machine: free ones, and whether another process listens there."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections.abc import Iterator

LOCAL = "127.0.0.1"
SHARES = 16  # processes that run tests at once


def _ports() -> Iterator[int]:
    """This process's share of the ports that the kernel does not give away, round and round.

    None is named twice within a run, nor by two processes of one.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SHARES
    ports = range(20_000 + number, 32_000, SHARES)
    first = random.randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_PORTS = _ports()


def free_port() -> int:
    """A port that stays free while nobody listens there."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server((LOCAL, port)):
            return port


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOCAL, port)) != 0
