"""What the workers share for a hand-over, and the lock that makes choosing and sending one step."""

from __future__ import annotations

import fcntl
import os
import time
from typing import NamedTuple

from multicore_server.connections.inboxes import Inboxes
from multicore_server.ipc.memory_file import memory_file
from multicore_server.ipc.scoreboard import Scoreboard

LOCK_PATIENCE = 0.001  # seconds: whoever holds the lock may have been stopped


class PlacementLock:
    """``with lock as locked:``, False when it was not free within `LOCK_PATIENCE`.

    The kernel releases it when its holder dies; a holder that is stopped keeps it. A class and no generator:
    it is taken for each connection that is placed.
    """

    __slots__ = ("_locked", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._locked = False

    def __enter__(self) -> bool:
        self._locked = self._take() or self._wait()
        return self._locked

    def __exit__(self, *_: object) -> None:
        if self._locked:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _take(self) -> bool:
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _wait(self) -> bool:
        deadline = time.monotonic() + LOCK_PATIENCE
        while time.monotonic() <= deadline:
            os.sched_yield()
            if self._take():
                return True
        return False


class Handover(NamedTuple):
    """Made once, before the first fork, and inherited by all workers."""

    scoreboard: Scoreboard
    inboxes: Inboxes
    lock: int  # a file to lock

    @classmethod
    def make(cls, scoreboard: Scoreboard, slots: int) -> Handover:
        """Raises OSError where the process may not open two descriptors a slot."""
        return cls(scoreboard, Inboxes(slots), memory_file("placement"))

    def lock_of(self) -> PlacementLock:
        """This process's hold on the lock."""
        return PlacementLock(self.lock)
