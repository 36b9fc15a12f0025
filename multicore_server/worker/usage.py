"""Writes what a worker uses, measured by itself, to its row of the scoreboard."""

from __future__ import annotations

import contextlib
import os
import time

from multicore_server.ipc.scoreboard import Item, Row
from multicore_server.machine import memory

LOOK_INTERVAL = 1.0  # seconds between two looks at what this process uses
MEMORY_INTERVAL = 10.0  # seconds between two measurements of its memory, where no limit asks for more


class Usage:
    """To be made in the worker's process: the row's former owners have used CPU time, too."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._used_before = row[Item.CPU_SECONDS]
        self._look_due = 0.0
        self._memory_due = 0.0

    def beat(self) -> None:
        """At each heartbeat."""
        now = time.monotonic()
        if now < self._look_due:
            return
        self._look_due = now + LOOK_INTERVAL
        self._row[Item.CPU_SECONDS] = self._used_before + time.process_time()
        with contextlib.suppress(OSError):  # no descriptors, say: measured when there are some again
            self._look_at_memory(now)

    def _look_at_memory(self, now: float) -> None:
        """Unique memory costs milliseconds to measure: often only while RSS is above the limit."""
        row = self._row
        over = row[Item.MEMORY_LIMIT] and memory.rss(os.getpid()) > row[Item.MEMORY_LIMIT]
        if over or now >= self._memory_due:
            self._memory_due = now + MEMORY_INTERVAL
            row[Item.UNIQUE_MEMORY] = memory.uss()
            row[Item.UNIQUE_MEMORY_AT] = now
