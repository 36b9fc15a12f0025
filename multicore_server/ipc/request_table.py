"""The requests in progress of each worker, in shared memory: shows what a dead or a blocked worker was doing.

Pure: the standard library alone. Made once, before the first fork, and inherited. Each worker process has a
row, as in the scoreboard, with a fixed number of entries. While all entries are in use, the oldest requests
keep theirs, and new requests get none. An entry has one writer, its worker. The worker writes the text first
and the time last, as one item. A reader finds the same time before and after the text, or skips the entry.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

ENTRIES = 32  # of a row
METHOD_SIZE, CLIENT_SIZE, PATH_SIZE = 16, 48, 184  # bytes; what is longer is cut off
_TEXT = struct.Struct(f"={METHOD_SIZE}s{CLIENT_SIZE}s{PATH_SIZE}s")
ITEM_SIZE = 8  # a C double
ENTRY_SIZE = ITEM_SIZE + _TEXT.size  # bytes: whole cache lines
ROW_ITEMS = ENTRIES * ENTRY_SIZE // ITEM_SIZE
STEP = ENTRY_SIZE // ITEM_SIZE  # from one entry to the next
NONE = -1  # in place of an entry's number
SHOWN = 3  # in a line of the log
_UNPRINTABLE = re.compile(r"[^!-~]")


class InHand(NamedTuple):
    """A request in progress. ``since`` is a time of CLOCK_MONOTONIC; ``client`` is "" where it has none."""

    method: str
    path: str
    client: str
    since: float

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class RequestTable:
    """Room for ``rows`` worker processes. ``queries``: paths have their query strings."""

    def __init__(self, rows: int, *, queries: bool = False) -> None:
        self.queries = queries
        self._rows = rows
        self._memory = mmap.mmap(-1, rows * ROW_ITEMS * ITEM_SIZE)
        self._items = memoryview(self._memory).cast("d")

    def writer(self, row: int) -> Writer:
        """For the worker that has the row."""
        first = row * ROW_ITEMS
        return Writer(self._items, self._memory, range(first, first + ROW_ITEMS, STEP), queries=self.queries)

    def of(self, row: int, now: float) -> list[InHand]:
        """What is in progress in a row, the oldest first. Whatever stands there, it raises nothing."""
        numbers = range(row * ROW_ITEMS, (row + 1) * ROW_ITEMS, STEP)
        found = (self._read(number, now) for number in numbers)
        return sorted((it for it in found if it is not None), key=lambda it: it.since)

    def _read(self, entry: int, now: float) -> InHand | None:
        since = self._items[entry]
        if not 0 < since <= now:
            return None
        method, client, path = _TEXT.unpack_from(self._memory, (entry + 1) * ITEM_SIZE)
        if self._items[entry] != since:  # it was written meanwhile
            return None
        cut = "..." if path[-1:] != b"\0" else ""
        return InHand(_printable(method), _printable(path) + cut, _printable(client), since)

    def clear(self, row: int) -> None:
        """The row's owner is gone. Only the arbiter calls it."""
        for number in range(row * ROW_ITEMS, (row + 1) * ROW_ITEMS, STEP):
            self._items[number] = 0.0


class Writer:
    """A worker's hold on its row. `begin` and `end` are called for each request."""

    def __init__(
        self, items: memoryview[float], memory: mmap.mmap, entries: Iterable[int], *, queries: bool
    ) -> None:
        self._items = items
        self._memory = memory
        self._pack = _TEXT.pack_into
        self._free = list(entries)
        self._queries = queries
        self._newest = NONE
        self._texts: dict[int, tuple[str, str, bytes]] = {}  # what stands in an entry: it may come again

    def begin(self, scope: Any, since: float) -> int:
        """Note the request of an ASGI scope; return its entry's number, `NONE` where all are in use."""
        if not self._free:
            return NONE
        self._newest = entry = self._free.pop()
        client, path = scope["client"], scope["raw_path"]
        if self._queries and scope["query_string"]:
            path = b"%b?%b" % (path, scope["query_string"])
        text = scope["method"], client[0] if client else "", path
        if self._texts.get(entry) != text:
            self._write(entry, text)
        self._items[entry] = since
        return entry

    def _write(self, entry: int, text: tuple[str, str, bytes]) -> None:
        method, client, path = text
        self._pack(self._memory, (entry + 1) * ITEM_SIZE, method.encode(), client.encode(), path)
        if len(path) <= PATH_SIZE:
            self._texts[entry] = text
        else:
            self._texts.pop(entry, None)

    def end(self, entry: int) -> None:
        """The request is answered: give its entry back."""
        self._items[entry] = 0.0
        self._free.append(entry)

    def rename_client(self, client: str) -> None:
        """The client of the request that has begun last is another one: a trusted proxy says so."""
        items, entry = self._items, self._newest
        if entry == NONE or not (since := items[entry]):
            return
        items[entry] = 0.0
        self._texts.pop(entry, None)
        start = (entry + 1) * ITEM_SIZE + METHOD_SIZE
        self._memory[start : start + CLIENT_SIZE] = client.encode()[:CLIENT_SIZE].ljust(CLIENT_SIZE, b"\0")
        items[entry] = since


def line_of(scope: Any) -> str:
    """The request of an ASGI scope as a line of the log has it: ``GET /feed``, without its query."""
    path = scope["raw_path"]
    cut = "..." if len(path) > PATH_SIZE else ""
    return f"{_printable(scope['method'].encode()[:METHOD_SIZE])} {_printable(path[:PATH_SIZE])}{cut}"


def _printable(field: bytes) -> str:
    text = field.rstrip(b"\0").decode("latin-1")
    return _UNPRINTABLE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def in_words(requests: Sequence[InHand], total: int, now: float) -> str:
    """``POST /orders/17 for 3.2 s, GET /feed for 0.1 s (and 4 more)``; "" where there is none. ``total`` is
    how many are in progress, with those that have no entry."""
    shown = requests[:SHOWN]
    if not shown:
        return ""
    text = ", ".join(f"{it} for {max(now - it.since, 0.0):.1f} s" for it in shown)
    more = max(total, len(requests)) - len(shown)
    return f"{text} (and {more} more)" if more > 0 else text
