"""What the workers share to hand connections over, and the lock that makes choosing and sending one step."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from multicore_server.connections.inboxes import Inboxes
from multicore_server.ipc.scoreboard import Scoreboard

LOCK_PATIENCE = 0.001  # seconds: whoever holds the lock may have been stopped


class Handover(NamedTuple):
    """Made once, before the first fork, and inherited by all workers."""

    scoreboard: Scoreboard
    inboxes: Inboxes
    lock: int  # a memfd to lock

    @classmethod
    def make(cls, scoreboard: Scoreboard, slots: int) -> Handover:
        """Raises OSError where the process may not open two descriptors a slot."""
        return cls(scoreboard, Inboxes(slots), os.memfd_create("placement"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Hold the lock; False when it was not free within `LOCK_PATIENCE`.

        The kernel releases it when its holder dies; a holder that is stopped keeps it.
        """
        deadline = 0.0
        while not self._lock():
            now = time.monotonic()
            deadline = deadline or now + LOCK_PATIENCE
            if now > deadline:
                yield False
                return
            os.sched_yield()
        try:
            yield True
        finally:
            fcntl.lockf(self.lock, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
