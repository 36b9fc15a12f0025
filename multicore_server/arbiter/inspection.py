"""Checks about once a second what no event reports: heartbeats, memory, the cron expression."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from multicore_server.fleet import events as ev
from multicore_server.fleet.events import Observation
from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.slots import Process, State
from multicore_server.ipc.scoreboard import Item, Row, Scoreboard, whole
from multicore_server.machine import cgroup, memory
from multicore_server.settings.quantities import Size, next_cron
from multicore_server.settings.table import Settings

INTERVAL = 1.0  # seconds between two looks at the most
RECENT = 5.0  # seconds in which a kill by the OOM killer explains a death: a large process takes long to end
# A clock that is set back further is obeyed, as cron(8) does. After less, as where summer time ends, the same
# hour comes twice, and its restart does not.
SET_BACK = timedelta(hours=3)
STALE = 1.5  # seconds by which a heartbeat is overdue: its worker's own measurements are not waited for


class Inspection:
    """Turns what it sees into observations for the fleet. ``wall_clock`` gives naive local time."""

    def __init__(
        self, fleet: Fleet, scoreboard: Scoreboard, wall_clock: Callable[[], datetime] = datetime.now
    ) -> None:
        self.fleet = fleet
        self.scoreboard = scoreboard
        self.due = 0.0
        self._forgiven = 0.0  # when the arbiter came out of its last pause
        self._wall_clock = wall_clock
        self._latest = wall_clock()  # since the next time of cron_restart was worked out
        self._available = memory.available()
        self._oom_kills = cgroup.oom_kills() or 0
        self._unexplained: list[float] = []  # when a kill was seen that no worker's death has come of yet

    def configure(self, settings: Settings, cfg: Any) -> None:
        """Go by these settings from now on."""
        self.settings = settings
        self.timeout = float(cfg.timeout)
        self._memory_limits = (settings.max_memory_kill, settings.max_memory_restart)
        self._cron_at = self._next_cron()
        times = [INTERVAL, settings.memory_check_interval]
        self._interval = min([*times, self.timeout / 4] if self.timeout else times)
        self.due = 0.0

    def forgive(self, now: float) -> None:
        """The arbiter itself was paused: heartbeats count from now on."""
        self._forgiven = now

    def inspect(self, now: float) -> Iterator[Observation]:
        """What is to be observed, if it is time to look."""
        if now < self.due:
            return
        self.due = now + self._interval
        self._count_oom_kills(now)
        if self._cron_is_due():
            yield ev.Restart("cron")
        for process in list(self.fleet.processes()):
            if process.state is not State.STARTING and process.pid:
                yield from self._inspect_worker(process, now)

    def _inspect_worker(self, process: Process, now: float) -> Iterator[Observation]:
        row = self.scoreboard.row(process.row)
        with contextlib.suppress(OSError):  # it ended meanwhile, or we may not look
            row[Item.RESIDENT_MEMORY] = memory.rss(process.pid)
        heard = max(row[Item.HEARTBEAT], process.ready_at or process.since, self._forgiven)
        silent = now - heard
        if self.timeout and silent > self.timeout:
            yield ev.Hung(process.pid, silent)
        if not any(self._memory_limits):
            row[Item.MEMORY_LIMIT] = 0  # a reload may have taken the limit away
        else:
            overdue = now - max(heard, row[Item.BEAT_DUE])
            yield from self._inspect_memory(process, row, stale=overdue > STALE, now=now)

    def _inspect_memory(
        self, process: Process, row: Row, *, stale: bool, now: float
    ) -> Iterator[Observation]:
        hard, soft = (self._bytes(limit) for limit in self._memory_limits)
        limit = min(limit for limit in (hard, soft) if limit)
        row[Item.MEMORY_LIMIT] = limit
        used = whole(row[Item.RESIDENT_MEMORY])
        if used <= limit:
            return
        if self.settings.memory_metric == "uss" and not stale:
            # A row may still hold what the process that had it before has measured.
            fresh = row[Item.UNIQUE_MEMORY_AT] > max(now - 2 * STALE, process.started)
            used = whole(row[Item.UNIQUE_MEMORY]) if fresh else 0
        if hard and used > hard:
            yield ev.OverMemory(process.pid, True, used, hard)
        elif soft and used > soft:
            yield ev.OverMemory(process.pid, False, used, soft)

    @property
    def memory_limit(self) -> int | None:
        """A worker's limit in bytes: the soft one, or the hard one where that is the only one."""
        hard, soft = (self._bytes(limit) for limit in self._memory_limits)
        return soft or hard or None

    def _bytes(self, limit: Size | None) -> int:
        """A percentage is of what this machine or container has, shared by the workers of the moment."""
        if limit is None:
            return 0
        if limit.percent:
            with contextlib.suppress(OSError):  # no descriptor is left, say: it counts as it was
                self._available = memory.available()
        return limit.bytes(self._available, max(self.fleet.workers, 1))

    def oom_killed(self, now: float) -> bool:
        """Whether a worker that was killed just now was killed by the kernel's OOM killer.

        Each of its kills explains one death, and only for `RECENT`: it may have been a child of the app's.
        """
        self._count_oom_kills(now)
        if not self._unexplained:
            return False
        self._unexplained.pop(0)
        return True

    def _count_oom_kills(self, now: float) -> None:
        kills = cgroup.oom_kills()
        if kills is not None:
            self._unexplained += [now] * (kills - self._oom_kills)
            self._oom_kills = kills
        self._unexplained = [seen for seen in self._unexplained if now - seen < RECENT]

    def _cron_is_due(self) -> bool:
        if self._cron_at is None:
            return False
        now = self._wall_clock()
        is_due, is_set_back = now >= self._cron_at, self._latest - now > SET_BACK
        self._latest = max(self._latest, now)
        if is_due or is_set_back:
            self._cron_at = self._next_cron()
        return is_due

    def _next_cron(self) -> datetime | None:
        self._latest = self._wall_clock()
        expression = self.settings.cron_restart
        return next_cron(expression, self._latest) if expression else None
