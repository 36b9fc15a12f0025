"""A worker's heartbeat; it also drives everything that a worker does from time to time.

If there was nothing to do for a while, it beats slowly: otherwise 32 idle workers would wake 400 times a
second, each time with cold caches. Connections on the worker's own listeners need no beat. Requests wake it,
and so do connections from a sibling, or to one.
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
WORKING = 0.05  # of the time, on a CPU: an app that works without requests is not at rest
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
        self._slowest = timeout / 4 if timeout else RESTING_BEAT  # seconds between two beats
        self._identity = identity
        self._watch = watch
        self._is_busy = is_busy
        self._dozes = dozes
        self._on_wake = on_wake
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        # At the last beat:
        self._used = 0.0  # seconds of CPU time, by this thread
        self._worked = time.process_time()
        self._seen = 0.0  # the sum of the signs of something to do
        self._beat_at = self._busy_at = self._loop.time()
        self._complain_due = 0.0

    def beat(self) -> None:
        """The next one is armed first: whatever fails below, the heart goes on."""
        self._state.beats += 1
        now = self._loop.time()
        lag = now - self._due if self._due else 0.0
        elapsed, self._beat_at = now - self._beat_at, now
        rests = self._rests(now, elapsed)
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
        for part in self._parts:
            try:
                part()
            except Exception as exc:  # noqa: BLE001, PERF203 - no memory, or a mistake of ours
                self._complain(exc)

    def wake(self) -> None:
        """There is something to do: beat soon, and quickly from now on. May be called in the middle of it."""
        self._acceptor.wake_by(None)
        if self._timer is not None:
            self._timer.cancel()
        self._busy_at = self._due = self._loop.time()
        self._timer = self._loop.call_at(self._due, self.beat)
        self._row[BEAT_DUE] = due = time.monotonic() + BEAT  # at once: what has come may block the loop
        self._watch.expect(due)
        self._on_wake()

    @property
    def _interval_at_rest(self) -> float:
        return min(DOZING_BEAT if self._dozes() else RESTING_BEAT, self._slowest)

    def _rests(self, now: float, elapsed: float) -> bool:
        """Whether there was nothing to do for a while. Where siblings passed it over lately, they may have to
        do so again, and are to see it soon."""
        row = self._row
        seen = self._state.total_requests + sum([row[sign] for sign in SIGNS])
        before, self._worked = self._worked, time.process_time()
        works = self._worked - before > WORKING * elapsed
        busy = works or row[LOOP_LAG] > LATE or not self._acceptor.may_rest or self._is_busy()
        if seen != self._seen or busy:
            self._seen, self._busy_at = seen, now
        return now - self._busy_at > REST_AFTER

    def _complain(self, exc: Exception) -> None:
        """Log what failed in a heartbeat, if that was not done a short while ago."""
        now = time.monotonic()
        if now >= self._complain_due:
            self._complain_due = now + QUIET
            trace = None if isinstance(exc, OSError) else exc
            text = "%s a part of the heartbeat failed (%s) and is tried again"
            logger.warning(text, self._identity(), exc, exc_info=trace)
