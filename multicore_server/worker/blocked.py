"""Logs a blocked event loop: for how long, by which line of code, with which requests."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from multicore_server.ipc.request_table import SHOWN, InHand
from multicore_server.ipc.scoreboard import Item, Row
from multicore_server.worker.standstill import Place, place_of

BLOCKED = Item.BLOCKED.value
BLOCKED_SECONDS = Item.BLOCKED_SECONDS.value
AGAIN = 60.0  # seconds between two warnings about the same line
MOST_LINES = 256  # that are remembered
# Of a CPU: a thread that computes gets more, also where several share one; one that is stopped gets none.
LEAST_SHARE = 0.2

logger = logging.getLogger("gunicorn.error")


class Noted(NamedTuple):
    """What was seen while the loop stood still."""

    place: Place | None
    requests: str
    is_said: bool


class Blocked:
    """``thread`` is the loop's. ``warning``: seconds from which it is worth a line; None: never.
    ``in_hand`` tells which requests are, the oldest first. `look` is the watcher's to call, `over` the
    heart's."""

    def __init__(
        self,
        row: Row,
        thread: int,
        warning: float | None,
        identity: Callable[[], str],
        in_hand: Callable[[float], list[InHand]],
    ) -> None:
        self._row = row
        self._thread = thread
        self._warning = math.inf if warning is None else warning
        self._identity = identity
        self._in_hand = in_hand
        self._noted: Noted | None = None
        self._said: dict[Place | None, float] = {}
        self._unsaid: Counter[Place | None] = Counter()

    def look(self, seconds: float) -> None:
        """How long the loop has been blocked by now."""
        if seconds < self._warning or self._noted is not None:
            return
        now = time.monotonic()
        place = place_of(sys._current_frames().get(self._thread))
        requests = ", ".join(map(str, self._in_hand(now)[:SHOWN]))
        self._noted = noted = Noted(place, requests, self._is_due(place, now))
        if noted.is_said:
            more = self._unsaid.pop(place, 0)
            often = f", {more} times more since the last warning about it" if more else ""
            self._warn(f"has been blocked for {seconds:.1f} s", noted, often)

    def _is_due(self, place: Place | None, now: float) -> bool:
        if now - self._said.get(place, -AGAIN) < AGAIN:
            self._unsaid[place] += 1
            return False
        if len(self._said) >= MOST_LINES:
            self._said.clear()
            self._unsaid.clear()
        self._said[place] = now
        return True

    def over(self, seconds: float, used: float) -> None:
        """The loop runs again; it stood still for so long, in which its thread has used so much CPU time.

        The watcher sees no block in which C code holds the GIL: that uses the CPU. What does not is no
        block of the app's: the process was stopped, or had no CPU.
        """
        noted, self._noted = self._noted, None
        if seconds < self._warning or (noted is None and used < seconds * LEAST_SHARE):
            return
        self._row[BLOCKED] += 1
        self._row[BLOCKED_SECONDS] += seconds
        if noted is None:
            noted = Noted(None, "", self._is_due(None, time.monotonic()))
            rest = ", by C code that holds the GIL: its line is not known"
        else:
            rest = "; it runs again"
        if noted.is_said:
            self._warn(f"was blocked for {seconds:.1f} s", noted, rest)

    def _warn(self, what: str, noted: Noted, rest: str) -> None:
        by = f" by {noted.place}" if noted.place else ""
        requests = f"; {noted.requests}" if noted.requests else ""
        logger.warning("%s the event loop %s%s%s%s", self._identity(), what, by, requests, rest)
