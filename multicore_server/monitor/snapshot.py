"""Shares the work of scrapes: one merge at a time, for all clients that asked before it began.

So a scrape shows everything that was counted before it was asked for, and a thousand scrapers cost no more
than one. After each merge there is a pause of the same length, so scrapes without a pause take at most half
a CPU. The merge runs in a thread: even if it takes a second, /healthz and the heartbeat do not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

MAX_REST = 1.0  # seconds


class Form(NamedTuple):
    """The form that a scraper wants."""

    openmetrics: bool
    gzipped: bool


Merge = Callable[[AbstractSet[Form]], dict[Form, bytes]]


class Snapshots:
    """``merge`` collects the metrics and writes them in each of the forms. It runs in its own thread."""

    def __init__(self, merge: Merge) -> None:
        self._merge = merge
        self._thread = ThreadPoolExecutor(1, "merge")
        self._wanted: set[Form] = set()
        self._last: asyncio.Task[dict[Form, bytes]] | None = None
        self._next: asyncio.Task[dict[Form, bytes]] | None = None
        self._rested = 0.0  # when the rest is over, of CLOCK_MONOTONIC

    async def take(self, form: Form) -> bytes:
        """Return the result of a merge that begins after this call. Raises what the merge raises."""
        self._wanted.add(form)
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._last))
        # A scraper that leaves takes nothing away from the others.
        return (await asyncio.shield(self._next))[form]

    def close(self) -> None:
        """Stop, without waiting for a merge in progress."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, last: asyncio.Task[dict[Form, bytes]] | None) -> dict[Form, bytes]:
        if last is not None:
            await asyncio.wait([last])
        # Even a sleep of 0 lets clients that arrived at the same time take part.
        await asyncio.sleep(max(0.0, self._rested - time.monotonic()))
        self._last, self._next = self._next, None  # from here on they come too late
        wanted, self._wanted = self._wanted, set()
        began = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._merge, wanted)
        finally:
            now = time.monotonic()
            self._rested = now + min(now - began, MAX_REST)
