"""Measures the arbiter and its listeners about once a second, for the monitor."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any

from multicore_server.ipc.scoreboard import Head, Row
from multicore_server.machine import memory
from multicore_server.machine.process import start_time

INTERVAL = 1.0  # seconds
# struct tcp_info of linux/tcp.h: of a listener, tcpi_unacked is how many connections wait to be accepted.
_UNACKED = struct.Struct("=24xI")


class Vitals:
    def __init__(self, head: Row) -> None:
        self._head = head
        self._started = time.time()
        with contextlib.suppress(OSError):
            self._started = start_time()
        self._due = 0.0

    def sample(self, listeners: Iterable[Any], now: float) -> None:
        """Measure, if it is time to; ``now`` is a time of the monotonic clock, in seconds."""
        if now < self._due:
            return
        self._due = now + INTERVAL
        with contextlib.suppress(OSError):  # no descriptor is left, say: it shows what it has
            self._measure(listeners)

    def _measure(self, listeners: Iterable[Any]) -> None:
        head = self._head
        head[Head.LISTEN_BACKLOG] = sum(backlog(getattr(each, "sock", each)) for each in listeners)
        head[Head.CPU_SECONDS] = time.process_time()
        head[Head.VIRTUAL_MEMORY], head[Head.RESIDENT_MEMORY] = memory.sizes(os.getpid())
        head[Head.OPEN_FDS] = _open_descriptors()
        head[Head.MAX_FDS] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        head[Head.START_TIME] = self._started  # last: from now on the others are shown


def backlog(listener: socket.socket) -> int:
    """How many connections the kernel holds for a TCP listener, which tcp(7) has no call for but TCP_INFO; 0
    for a unix socket, where it does not say."""
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return 0
    with contextlib.suppress(OSError, struct.error):
        found = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
        return int(_UNACKED.unpack(found)[0])
    return 0


def _open_descriptors() -> int:
    for place in ("/proc/self/fd", "/dev/fd"):  # Linux, macOS
        with contextlib.suppress(OSError):
            # Since 6.2, Linux says it as the directory's size. To list hundreds of them takes milliseconds.
            return _size_on_linux(place) or len(os.listdir(place)) - 1  # noqa: PTH208 - names are not wanted
    return 0


def _size_on_linux(place: str) -> int:
    return os.stat(place).st_size if sys.platform == "linux" else 0  # noqa: PTH116 - as above
