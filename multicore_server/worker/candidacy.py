"""Makes a worker a candidate for the primary worker, among its siblings."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from multicore_server import cluster
from multicore_server.ipc.primary_lock import PrimaryLock
from multicore_server.ipc.scoreboard import Item, Row, Scoreboard

PATIENCE = 1.0  # seconds between two looks of a worker that is about to be replaced


class Candidacy:
    """In a reload the new workers go first: otherwise what runs in the primary worker would be moved from one
    old worker to the next, as often as there are workers.

    A worker that is to drain is no candidate, also before it hears of that: when the server stops, what the
    primary worker has ended would start in a worker that ends as well.
    """

    def __init__(self, lock: PrimaryLock, scoreboard: Scoreboard, row: Row, deployment: int) -> None:
        self._lock = lock
        self._scoreboard = scoreboard
        self._row = row
        self._deployment = deployment
        self._election = cluster.stand_for_primary(lock, self._count)
        self._loop = asyncio.get_running_loop()
        self._listens = False
        self._look_due = 0.0
        self._changes = -1.0
        self._is_old = False
        self._has_served = False
        self._has_withdrawn = False

    def beat(self) -> None:
        """At each heartbeat."""
        if self._has_withdrawn or self._is_to_drain():  # what it would hear is for others
            return
        now = self._loop.time()
        if not self._has_newer():
            self._listen()
        elif now < self._look_due:
            return
        self._look_due = now + PATIENCE
        self._election.look()

    def _count(self, primary: bool) -> None:
        if primary:
            self._row[Item.PRIMARY_CHANGES] += 1

    def withdraw(self) -> Coroutine[Any, Any, None]:
        """The worker drains. To be awaited: what runs in the primary worker ends."""
        self._has_withdrawn = True
        self._be_deaf()
        return self._election.give_up()

    def _is_to_drain(self) -> bool:
        """The arbiter says so here before it orders the first worker to end."""
        serves = bool(self._row[Item.SERVING])
        self._has_served = self._has_served or serves  # it is ready a moment before the arbiter knows
        return self._has_served and not serves

    def _has_newer(self) -> bool:
        """Whether a worker of a newer deployment serves."""
        if self._changes != self._scoreboard.changes:
            self._changes = self._scoreboard.changes
            rows = map(self._scoreboard.row, self._scoreboard.serving())
            self._is_old = any(row[Item.DEPLOYMENT] > self._deployment for row in rows)
        return self._is_old

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            self._loop.add_reader(self._lock.freed, self._hear)

    def _be_deaf(self) -> None:
        self._listens = False
        self._loop.remove_reader(self._lock.freed)

    def _hear(self) -> None:
        """It was freed. Who leaves it to another one leaves the message as well."""
        if self._is_to_drain() or self._has_newer():
            self._be_deaf()
            return
        self._lock.hear()
        self._election.look()
