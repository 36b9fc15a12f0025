"""The scoreboard: shared memory with one row for each worker process that can be alive.

Pure: the standard library alone. Made once, before the first fork, and inherited. Every item has one writer:
the worker that has the row, or the arbiter for the items marked so. Single items of a ``memoryview`` are
written whole (``struct.pack_into`` is not: readers saw torn values), so nobody needs a lock.
"""

from __future__ import annotations

import mmap
from enum import IntEnum
from typing import TypeAlias

from multicore_server.slots import ROWS_PER_SLOT

MIN_SLOTS = 64

Row: TypeAlias = "memoryview[float]"


class Item(IntEnum):
    """The items of a row; times are of CLOCK_MONOTONIC, which all processes of a machine share."""

    HEARTBEAT = 0  # seconds
    UNIQUE_MEMORY = 1  # bytes, measured only while resident memory is above the limit
    UNIQUE_MEMORY_AT = 2  # seconds
    MEMORY_LIMIT = 3  # bytes, written by the arbiter; 0 is no limit


ITEM_SIZE = 8  # a C double
ROW_SIZE = 64  # bytes, a cache line: workers do not slow each other down


def slots_for(workers: int) -> int:
    """How many slots to make room for: shared memory cannot grow once workers have inherited it."""
    return max(2 * workers, MIN_SLOTS)


class Scoreboard:
    """Rows for ``slots`` slots, in anonymous shared memory."""

    def __init__(self, slots: int) -> None:
        self._memory = mmap.mmap(-1, slots * ROWS_PER_SLOT * ROW_SIZE)
        self._items: Row = memoryview(self._memory).cast("d")

    def row(self, number: int) -> Row:
        """The items of one row, to be indexed with `Item`."""
        width = ROW_SIZE // ITEM_SIZE
        return self._items[number * width : (number + 1) * width]
