"""Ends the processes that an app started in a worker that has exited.

The arbiter is the subreaper of its descendants. So these processes become its children when their worker is
gone, and no other process can get their pids until the arbiter has reaped them. A process with a session of
its own (``start_new_session``, a daemon) is meant to continue and is left alone.
"""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass

from multicore_server.arbiter.context import ArbiterContext

SOON = 1.0  # seconds in which what ends by itself is not mentioned
TERM_GRACE = 5.0  # seconds from SIGTERM to SIGKILL
NAMED = 5  # processes at most in one line


@dataclass(slots=True)
class Left:
    """What one worker has left; ``due`` is when the next of the steps follows."""

    worker: str  # its identity
    pids: set[int]
    due: float
    steps: list[Callable[[Left], float]]


class Orphans:
    """Names them, and ends them when ``grace()`` seconds are over.

    ``is_known`` tells whether a child is a worker, or another process that the arbiter itself has started.
    """

    def __init__(
        self, context: ArbiterContext, is_known: Callable[[int], bool], grace: Callable[[], float]
    ) -> None:
        self._context = context
        self._is_known = is_known
        self._grace = grace
        self._spared: set[int] = set()
        self._left: list[Left] = []
        with contextlib.suppress(OSError):  # they go to init, as without us
            context.system.become_subreaper()

    @property
    def due(self) -> float:
        """When `tick` has something to do."""
        return min((left.due for left in self._left), default=math.inf)

    def spare(self) -> None:
        """What is there by now, and is not known to be left by a worker, was started by a hook: it is not
        touched. To be called before a worker is forked, and after hooks."""
        # In this order: what a worker leaves is our child from the moment in which that one is to be reaped.
        if (unknown := self._unknown()) and not self._context.system.has_ended_child():
            self._spared.update(unknown)

    def look(self, worker: str) -> None:
        """A worker has ended: see what it has left. To be called when all are reaped that have ended, and
        before hooks hear of it."""
        if found := set(self._unknown()):
            steps: list[Callable[[Left], float]] = [self._name, self._terminate, self._kill]
            self._left.append(Left(worker, found, self._context.system.monotonic() + SOON, steps))

    def _unknown(self) -> list[int]:
        known = self._spared.union(*(left.pids for left in self._left))
        return [
            pid for pid in self._context.system.children() if pid not in known and not self._is_known(pid)
        ]

    def _spare_daemons(self) -> None:
        for left in self._left:
            daemons = {pid for pid in left.pids if self._is_daemon(pid)}
            self._spared |= daemons
            left.pids -= daemons
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._left[:] = [left for left in self._left if left.pids]

    def _is_daemon(self, pid: int) -> bool:
        """Whether it has a session of its own. Some come into theirs late."""
        getsid = self._context.system.getsid
        try:
            return getsid(pid) != getsid(0)
        except OSError:  # it has ended
            return False

    def reaped(self, pid: int) -> None:
        self._spared.discard(pid)
        for left in self._left:
            left.pids.discard(pid)
        self._forget_empty()

    def tick(self, now: float) -> None:
        if now < self.due:
            return
        self._spare_daemons()
        for left in self._left:
            if now >= left.due:
                left.due = now + left.steps.pop(0)(left)

    def end(self) -> None:
        """The arbiter ends: what is left is told to end, too."""
        self._spare_daemons()
        for left in self._left:
            self._signal(left, signal.SIGTERM)

    def _name(self, left: Left) -> float:
        text = "%s left %d processes of its app running (%s); they get SIGTERM in %g s"
        self._context.log.warning(text, left.worker, len(left.pids), self._names(left), self._grace())
        return self._grace()

    def _names(self, left: Left) -> str:
        some = sorted(left.pids)[:NAMED]
        names = ", ".join(f"{self._context.system.name_of(pid)} {pid}" for pid in some)
        return names if len(some) == len(left.pids) else f"{names}, …"

    def _terminate(self, left: Left) -> float:
        self._signal(left, signal.SIGTERM)
        return TERM_GRACE

    def _kill(self, left: Left) -> float:
        self._signal(left, signal.SIGKILL)
        return math.inf

    def _signal(self, left: Left, number: signal.Signals) -> None:
        text = "%s to the processes that %s left running (%s)"
        self._context.log.warning(text, number.name, left.worker, self._names(left))
        for pid in left.pids:
            try:
                self._context.system.kill(pid, number)
            except OSError as exc:  # noqa: PERF203 - no right to: the others may still be reached
                self._context.log.warning("cannot send %s to pid %d: %s", number.name, pid, exc.strerror)
