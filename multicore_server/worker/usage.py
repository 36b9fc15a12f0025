"""Writes what a worker uses, measured by itself, to its row of the scoreboard."""

from __future__ import annotations

import contextlib
import os
import time

from multicore_server.ipc.scoreboard import Item, Row
from multicore_server.machine import memory

LOOK_INTERVAL = 1.0  # seconds between two looks at what this process uses
MEMORY_INTERVAL = 10.0  # seconds between two measurements of its memory, where no limit asks for more
STEADY_INTERVAL = 60.0  # the same, where its resident memory is as it was


class Usage:
    """To be made in the worker's process: the row's former owners have used CPU time, too."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._used_before = row[Item.CPU_SECONDS]
        self._look_due = 0.0
        self._measured_at = -STEADY_INTERVAL
        self._resident = 0  # bytes, at that time

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
        """Unique memory costs milliseconds to measure: often only while RSS is above the limit, seldom while
        RSS does not change."""
        row, resident = self._row, memory.rss(os.getpid())
        is_over = 0 < row[Item.MEMORY_LIMIT] < resident
        interval = STEADY_INTERVAL if resident == self._resident else MEMORY_INTERVAL
        if is_over or now - self._measured_at >= interval:
            row[Item.UNIQUE_MEMORY] = memory.uss()
            row[Item.UNIQUE_MEMORY_AT] = self._measured_at = now
            self._resident = resident
