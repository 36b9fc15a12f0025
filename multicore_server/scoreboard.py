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
    SERVING = 4  # 1 while it is the arbiter's choice for its slot; written by the arbiter
    ACCEPTING = 5  # 1 while it takes connections
    IN_HAND = 6  # requests, and connections that wait for their first
    CONNECTIONS = 7


ITEM_SIZE = 8  # a C double
ROW_SIZE = 64  # bytes, a cache line: workers do not slow each other down


def slots_for(workers: int) -> int:
    """How many slots to make room for: shared memory cannot grow once workers have inherited it."""
    return max(2 * workers, MIN_SLOTS)


# The items of the head, which is the arbiter's to write.
_CHANGES = 0
_USED_SLOTS = 1


class Scoreboard:
    """Rows for ``slots`` slots, in anonymous shared memory."""

    def __init__(self, slots: int) -> None:
        self._rows = slots * ROWS_PER_SLOT
        self._memory = mmap.mmap(-1, (self._rows + 1) * ROW_SIZE)
        self._items: Row = memoryview(self._memory).cast("d")
        self._head = self.row(self._rows)
        self._published: frozenset[int] = frozenset()

    def row(self, number: int) -> Row:
        """The items of one row, to be indexed with `Item`."""
        width = ROW_SIZE // ITEM_SIZE
        return self._items[number * width : (number + 1) * width]

    @property
    def changes(self) -> float:
        """Grows whenever `serving` has changed."""
        return self._head[_CHANGES]

    @property
    def used_slots(self) -> int:
        """Slots from this number on have never had a worker."""
        return int(self._head[_USED_SLOTS])

    def serving(self) -> list[int]:
        """The numbers of the rows whose workers serve."""
        rows = range(self.used_slots * ROWS_PER_SLOT)
        return [number for number in rows if self.row(number)[Item.SERVING]]

    def publish(self, serving: frozenset[int]) -> None:
        """The arbiter's: say whose turn it is."""
        if serving == self._published:
            return
        for number in serving ^ self._published:
            self.row(number)[Item.SERVING] = number in serving
        self._published = serving
        used = max((number // ROWS_PER_SLOT + 1 for number in serving), default=0)
        self._head[_USED_SLOTS] = max(used, self._head[_USED_SLOTS])
        self._head[_CHANGES] += 1
