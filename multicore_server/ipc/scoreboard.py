"""The scoreboard: shared memory with one row for each worker process that can be alive.

Pure: the standard library alone. Made once, before the first fork, and inherited. Every item except
`Item.BEAT_DUE` has one writer: the worker that has the row, or the arbiter for the items marked so. Single
items of a ``memoryview`` are written whole (``struct.pack_into`` is not: readers saw torn values), so nobody
needs a lock.

The counters of a row are never reset: the next owner continues them, so sums over rows cannot fall.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeAlias

from multicore_server.ipc.heartbeat import LATE

MIN_SLOTS = 64
ROWS_PER_SLOT = 4  # one row for each living process of a slot

Row: TypeAlias = "memoryview[float]"

# What requests are counted by. A method that is not in the list is "other".
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE", "other")
CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", "499")  # 499, nginx's: the client left without its response
# prometheus_client's Histogram.DEFAULT_BUCKETS, in seconds; the last one is infinite.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Item(IntEnum):
    """The items of a row; times are of CLOCK_MONOTONIC, which all processes of a machine share."""

    HEARTBEAT = 0  # seconds
    UNIQUE_MEMORY = 1  # bytes, as last measured
    UNIQUE_MEMORY_AT = 2  # seconds
    MEMORY_LIMIT = 3  # bytes, written by the arbiter; 0 is no limit
    SERVING = 4  # 1 while it is the worker that serves for its slot; written by the arbiter
    ACCEPTING = 5  # 1 while it takes connections, 0.5 where it will again, 0 where it will not
    IN_HAND = 6  # requests, and connections that wait for their first
    CONNECTIONS = 7
    RESIDENT_MEMORY = 8  # bytes, written by the arbiter
    LOOP_LAG = 9  # seconds
    WEBSOCKETS = 10
    UNREAD = 11  # connections that wait for their first request; they are in progress too
    # From here on counters.
    CPU_SECONDS = 12
    ACCEPTED = 13  # connections, where they were accepted
    HANDED_OVER = 14  # connections given to a sibling on their arrival
    MIGRATED = 15  # connections given to a sibling later on
    REQUESTS = 16  # a cell for each of METHODS, and in it one for each of CODES
    DURATIONS = 76  # requests by BUCKETS, each in one bucket alone; the last cell is for longer ones
    DURATION_SUM = 91  # seconds
    MESSAGES_SENT = 92  # by the app, to other processes or to its own
    MESSAGES_RECEIVED = 93
    MESSAGES_LOST = 94  # not taken, or garbled on their way
    MESSAGE_BYTES = 95  # sent
    HANDLER_SECONDS = 96
    PRIMARY_CHANGES = 97  # how often it became the primary worker
    # No counters.
    DEPLOYMENT = 98  # the number of what the worker serves: a reload makes the next one
    LISTENS = 99  # 1 while it takes messages
    BEAT_DUE = 100  # seconds: when the next heartbeat is due; who sends a connection brings it forward
    # Counters again.
    BLOCKED = 101  # how often the event loop stood still for longer than block_warning
    BLOCKED_SECONDS = 102
    QUEUE = 103  # requests by BUCKETS of the time that they waited for the app, as DURATIONS
    QUEUE_SUM = 118  # seconds
    # No counter.
    INLINE = 119  # 1 where requests run in the event loop's thread: a long one blocks it, by design
    # A counter.
    REQUEST_TIMEOUTS = 120  # requests that were ended by request_timeout


# Values that describe a row's owner now. They are cleared when it is gone.
PRESENT = (
    Item.UNIQUE_MEMORY, Item.ACCEPTING, Item.IN_HAND, Item.CONNECTIONS,
    Item.RESIDENT_MEMORY, Item.LOOP_LAG, Item.WEBSOCKETS, Item.UNREAD, Item.DEPLOYMENT,
    Item.LISTENS, Item.BEAT_DUE, Item.INLINE,
)  # fmt: skip

ITEM_SIZE = 8  # a C double
MOST = 2.0**63  # what no item reaches
ROW_SIZE = 1024  # bytes, whole cache lines: workers do not slow each other down


def slots_for(workers: int) -> int:
    """How many slots to make room for: shared memory cannot grow once workers have inherited it."""
    return max(2 * workers, MIN_SLOTS)


def whole(value: float) -> int:
    """Return an item as a whole number, 0 for what is none: workers run other people's code, which may have
    written anything there."""
    return int(value) if 0 <= value < MOST else 0


def requests_in_progress(row: Sequence[float] | Row) -> float:
    """Requests that have begun to arrive in this row's worker and are not answered in full."""
    return row[Item.IN_HAND] - row[Item.UNREAD]


def loop_lag(row: Sequence[float] | Row, now: float) -> float:
    """How late this row's last heartbeats were, or by now the next one is. ``now`` is a time of
    CLOCK_MONOTONIC."""
    return max(row[Item.LOOP_LAG], _overdue(row, now))


def blocked(row: Sequence[float] | Row, now: float) -> float:
    """Seconds for which this row's event loop has been blocked by now; 0 if it is not. ``now`` as above."""
    overdue = _overdue(row, now)
    return overdue if overdue > LATE else 0.0


def _overdue(row: Sequence[float] | Row, now: float) -> float:
    due = row[Item.BEAT_DUE]
    return max(0.0, now - due) if due else 0.0  # no heart beats yet


class Head(IntEnum):
    """The items of the head. The arbiter writes them, except the one marked as the monitor's."""

    CHANGES = 0
    USED_SLOTS = 1
    MONITOR_HEARTBEAT = 2  # seconds of CLOCK_MONOTONIC, written by the monitor
    LISTEN_BACKLOG = 3  # connections that the kernel holds and nobody has accepted
    # The arbiter's own process, as in prometheus_client's ProcessCollector.
    CPU_SECONDS = 4
    RESIDENT_MEMORY = 5  # bytes
    VIRTUAL_MEMORY = 6  # bytes
    START_TIME = 7  # seconds since the epoch
    OPEN_FDS = 8
    MAX_FDS = 9


class Scoreboard:
    """Rows for ``slots`` slots, in anonymous shared memory."""

    def __init__(self, slots: int) -> None:
        self._rows = slots * ROWS_PER_SLOT
        self._memory = mmap.mmap(-1, (self._rows + 1) * ROW_SIZE)
        self._items: Row = memoryview(self._memory).cast("d")
        self.head = self.row(self._rows)
        self._published: frozenset[int] = frozenset()

    def row(self, number: int) -> Row:
        """The items of one row, to be indexed with `Item`."""
        width = ROW_SIZE // ITEM_SIZE
        return self._items[number * width : (number + 1) * width]

    @property
    def changes(self) -> float:
        """Grows whenever `serving` has changed."""
        return self.head[Head.CHANGES]

    @property
    def used_slots(self) -> int:
        """Slots from this number on have never had a worker."""
        return min(whole(self.head[Head.USED_SLOTS]), self._rows // ROWS_PER_SLOT)

    def serving(self) -> list[int]:
        """The numbers of the rows whose workers serve."""
        rows = range(self.used_slots * ROWS_PER_SLOT)
        return [number for number in rows if self.row(number)[Item.SERVING]]

    def assign(self, number: int) -> None:
        """Give a row to a new owner. Only the arbiter calls it."""
        self.clear(number)
        self._use(number)

    def _use(self, number: int) -> None:
        self.head[Head.USED_SLOTS] = max(number // ROWS_PER_SLOT + 1, self.used_slots)

    def clear(self, number: int) -> None:
        """Clear a row whose owner is gone; its counters stay. Only the arbiter calls it."""
        row = self.row(number)
        for item in PRESENT:
            row[item] = 0

    def publish(self, serving: frozenset[int]) -> None:
        """Set which rows serve. Only the arbiter calls it."""
        if serving == self._published:
            return
        for number in serving ^ self._published:
            self.row(number)[Item.SERVING] = number in serving
        self._published = serving
        for number in serving:
            self._use(number)
        self.head[Head.CHANGES] += 1
