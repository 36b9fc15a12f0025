"""Measures how long requests waited until the app was called: too few workers, or a slow app?

A trusted proxy may say when a request came to it. Otherwise the kernel knows when the last bytes came on a
connection: a request in the accept queue, in an inbox, or unread behind a blocked event loop ages there.
Asking the kernel takes a microsecond, so a busy worker asks for one request in many, which counts for all of
them.
"""

from __future__ import annotations

import _socket
import re
import socket
import sys
import time
from bisect import bisect_left
from typing import Any

from multicore_server.ipc.scoreboard import BUCKETS, Item, Row
from multicore_server.wsgi.bridge import IN_THREAD

QUEUE = Item.QUEUE.value
QUEUE_SUM = Item.QUEUE_SUM.value

QUEUED = "multicore_server.queued"  # in a scope: seconds

# --- what a proxy says

START = re.compile(rb"(?:t=)?(\d{9,17}(?:\.\d{1,9})?)")
UNITS = (1.0, 1e3, 1e6)  # in a second: s, ms, us
LONGEST = 3600.0  # seconds: what waited for longer did not
AHEAD = 1.0  # seconds that the proxy's clock may be ahead of ours

# --- what the kernel knows

TCP_INFO: int | None = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
LAST_DATA = slice(52, 56)  # of struct tcp_info: tcpi_last_data_recv, in milliseconds
MOST = 32  # requests that one of them counts for
PACE = 5e-3  # seconds for each request that is asked for: where they come faster, it is fewer of them
BURST = 32  # requests that may come at once, and be asked for all the same
NEVER = sys.maxsize


class QueueTime:
    """Counts in ``row``; where the app ``has_threads``, what a request waits for one as well. Where it
    ``notes``, the scope of a request has its time, if that is known."""

    def __init__(self, row: Row, *, has_threads: bool = False, notes: bool = False) -> None:
        self._row = row
        self._has_threads = has_threads
        self._notes = notes
        self._stride = 1  # the last one asked for counts for so many
        self._asked = 0.0  # of perf_counter
        self._left = 0.0  # of BURST
        self._is_told = False

    def observe(self, seconds: float, requests: int = 1) -> None:
        self._row[QUEUE + bisect_left(BUCKETS, seconds)] += requests
        self._row[QUEUE_SUM] += seconds * requests

    def _observe_in(self, scope: Any, seconds: float, requests: int = 1) -> None:
        if self._notes:
            scope[QUEUED] = seconds
        if self._has_threads:
            scope[IN_THREAD] = lambda more: self.observe(seconds + more, requests)
        else:
            self.observe(seconds, requests)

    def told(self, scope: Any, value: bytes) -> None:
        """The value of X-Request-Start has come from a trusted proxy. From then on the kernel is not asked:
        it does not know what the proxy does."""
        waited = since_start(value, time.time())
        if waited is not None:
            self._is_told = True
            self._observe_in(scope, waited)

    def ask(self, cycle: Any, now: float) -> int:
        """The app is about to be called; ``now`` is a time of perf_counter. Returns with how many more
        requests it is to be asked again."""
        if self._is_told or TCP_INFO is None:
            return NEVER
        waited = idle(getattr(cycle, "transport", None))
        if waited is not None:
            self._observe_in(cycle.scope, waited, self._stride)
        left = min(BURST, self._left + (now - self._asked) / PACE) - 1
        self._asked, self._left = now, max(0.0, left)
        self._stride = min(self._stride * 2, MOST) if left < 0 else max(self._stride // 2, 1)
        return self._stride


def since_start(value: bytes, now: float) -> float | None:
    """Seconds since the time that X-Request-Start names; None where it cannot be that. ``now``: since the
    epoch."""
    found = START.fullmatch(value.strip())
    if found is None:
        return None
    for unit in UNITS:
        waited = now - float(found[1]) / unit
        if -AHEAD <= waited <= LONGEST:
            return max(0.0, waited)
    return None


def idle(transport: Any) -> float | None:
    """Seconds since the last bytes came on a TCP connection, in steps of the kernel's clock."""
    held = None if transport is None else transport.get_extra_info("socket")
    try:
        raw = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, -1 if held is None else held.fileno())
    except (OSError, ValueError):  # it is closed
        return None
    try:
        info: bytes = raw.getsockopt(socket.IPPROTO_TCP, TCP_INFO or 0, LAST_DATA.stop)
    except OSError:  # a Unix socket
        return None
    finally:
        raw.detach()
    seconds = int.from_bytes(info[LAST_DATA], sys.byteorder) / 1e3
    return seconds if len(info) == LAST_DATA.stop and seconds <= LONGEST else None
