"""A worker's heartbeat; it also drives everything that a worker does from time to time.

If there was nothing to do for a while, it beats slowly: otherwise 32 idle workers would wake 400 times a
second, each time with cold caches. What comes wakes it: connections, requests, messages. So does a connection
that it gives to a sibling.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.heartbeat import BEAT, DOZING_BEAT, LATE, REST_AFTER, RESTING_BEAT
from multicore_server.ipc.scoreboard import Item

HEARTBEAT = Item.HEARTBEAT.value
BEAT_DUE = Item.BEAT_DUE.value
LOOP_LAG = Item.LOOP_LAG.value
# What has changed where there was something to do.
SIGNS = tuple(it.value for it in (Item.ACCEPTED, Item.HANDED_OVER, Item.MIGRATED, Item.MESSAGES_RECEIVED))

BRISK = 0.01  # seconds of lag
LAG_FADES = 0.88  # each second: a scrape every 15 s still sees a seventh of the worst
WORKING = 0.05  # of the time, on a CPU: an app that works without requests does not rest for long
QUIET = 10.0  # seconds between two log lines about a heartbeat that fails

logger = logging.getLogger("gunicorn.error")


class Watch(Protocol):
    """Who is told of the beats, and looks after a loop that is blocked."""

    def expect(self, beat: float | None) -> None:
        """When the next beat is due, of CLOCK_MONOTONIC; None: the worker rests."""
        ...

    def over(self, seconds: float, used: float) -> None:
        """A beat was late by so much; since the last one, the loop's thread has used so much CPU time."""
        ...


class Heart:
    """``parts`` are called at each beat. ``timeout``: seconds without one after which the arbiter takes the
    worker for hung, 0 for never. ``identity`` names it in the log. While it ``is_busy`` it does not rest,
    though nothing comes; where it ``dozes`` it does not rest for long. ``on_wake`` is called before it serves
    what ends its rest."""

    def __init__(
        self,
        state: ConnectionsState,
        acceptor: Acceptor,
        parts: Sequence[Callable[[], object]],
        *,
        timeout: float,
        identity: Callable[[], str],
        watch: Watch,
        is_busy: Callable[[], bool] = lambda: False,
        dozes: Callable[[], bool] = lambda: False,
        on_wake: Callable[[], object] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = state
        self._row = state.row
        self._acceptor = acceptor
        self._parts = parts
        self._slowest = timeout / 4 if timeout else RESTING_BEAT
        self._interval_at_rest = min(DOZING_BEAT, self._slowest)
        self._identity = identity
        self._watch = watch
        self._is_busy = is_busy
        self._dozes = dozes
        self._on_wake = on_wake
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._used = 0.0  # seconds of CPU time, by this thread, at the last beat
        self._seen = 0.0  # the sum of the signs of something to do, at the last beat
        self._worked = time.process_time()  # when `_choose_rest` looked last, at this time:
        self._chosen_at = self._beat_at = self._busy_at = self._loop.time()
        self._complain_due = 0.0

    def beat(self) -> None:
        """The next one is armed first: whatever fails below, the heart goes on."""
        self._state.beats += 1
        now = self._loop.time()
        lag = now - self._due if self._due else 0.0
        elapsed, self._beat_at = now - self._beat_at, now
        is_quiet = self._is_quiet()
        if not is_quiet:
            self._busy_at = now
        rests = now - self._busy_at > REST_AFTER
        interval = self._interval_at_rest if rests else BEAT
        self._due = now + interval
        self._timer = self._loop.call_at(self._due, self.beat)
        self._acceptor.wake_by(self.wake if rests else None)
        row, moment = self._row, time.monotonic()
        row[HEARTBEAT], row[BEAT_DUE] = moment, moment + interval
        self._watch.expect(None if rests else moment + interval)
        before, self._used = self._used, time.thread_time()
        if lag > LATE:
            self._watch.over(lag, self._used - before)
        row[LOOP_LAG] = worst = max(lag, row[LOOP_LAG] * LAG_FADES**elapsed)
        self._state.is_brisk = worst < BRISK
        for part in (*self._parts, self._choose_rest) if is_quiet else self._parts:
            try:
                part()
            except Exception as exc:  # noqa: BLE001, PERF203 - no memory, or a mistake of ours
                self._complain(exc)

    def wake(self) -> None:
        """There is something to do: beat soon, and quickly from now on. May be called in the middle of it."""
        self._acceptor.wake_by(None)
        if self._timer is not None:
            self._timer.cancel()
        self._busy_at = now = self._loop.time()
        self._due = min(self._due, now)  # it may be overdue: the loop was blocked
        self._timer = self._loop.call_at(now, self.beat)
        # At once, as what has come may block the loop. It runs now: the time before counts for nothing.
        row, moment = self._row, time.monotonic()
        row[HEARTBEAT], row[BEAT_DUE] = moment, moment + BEAT
        self._watch.expect(moment + BEAT)
        self._on_wake()

    def _is_quiet(self) -> bool:
        """Whether there was nothing to do since the last beat. Where siblings passed it over lately, they may
        have to do so again, and are to see it soon."""
        row, before = self._row, self._seen
        self._seen = self._state.total_requests + sum([row[sign] for sign in SIGNS])
        busy = row[LOOP_LAG] > LATE or not self._acceptor.may_rest or self._is_busy()
        return self._seen == before and not busy

    def _choose_rest(self) -> None:
        """How long it rests, if it does: for the next beat."""
        now, worked = self._loop.time(), time.process_time()
        works = worked - self._worked > WORKING * (now - self._chosen_at)
        self._chosen_at, self._worked = now, worked
        self._interval_at_rest = min(DOZING_BEAT if works or self._dozes() else RESTING_BEAT, self._slowest)

    def _complain(self, exc: Exception) -> None:
        """Log what failed in a heartbeat, if that was not done a short while ago."""
        now = time.monotonic()
        if now >= self._complain_due:
            self._complain_due = now + QUIET
            trace = None if isinstance(exc, OSError) else exc
            text = "%s a part of the heartbeat failed (%s) and is tried again"
            logger.warning(text, self._identity(), exc, exc_info=trace)
