"""The end of a server: answer on for a while, drain, end; or end at once.

Pure, a part of the fleet. TERM is graceful, INT and QUIT are not, and each of them acts in every state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multicore_server.fleet import events as ev
from multicore_server.fleet.slots import Process, State

if TYPE_CHECKING:
    from multicore_server.fleet.fleet import Fleet

QUICK_GRACE = 2.0  # seconds to end after QUIT, as in gunicorn's quick shutdown


class Shutdown:
    """A shutdown under way, with the exit status and the reason that the arbiter will end with."""

    def __init__(self, fleet: Fleet, status: int = 0, reason: str | None = None, wait: float = 0.0) -> None:
        self.fleet = fleet
        self.status = status
        self.reason = reason
        self.drain_at: float | None = fleet.now + wait
        self.quick = False
        self.halted = False
        if wait:
            fleet.tell("stopping", f"still answering for {wait:g} s (shutdown_delay)")

    def hurry(self, *, graceful: bool) -> None:
        """A further signal: the wait is over; without grace, so are the requests in hand."""
        if self.drain_at is not None:
            self.drain_at = self.fleet.now
        if not graceful and not self.quick:
            self.quick = True
            self._close()
            for process in self.fleet.processes():
                self._quit(process)

    def advance(self) -> None:
        fleet = self.fleet
        nobody = not any(fleet.processes())
        if self.drain_at is not None and (nobody or self.drain_at <= fleet.now):
            self._close()
            for slot in fleet.slots.values():
                fleet.endings.dismiss(slot, "the server is stopping")
        if nobody:
            self.halted = True
            fleet.act(ev.Halt(self.status, self.reason))

    def _close(self) -> None:
        if self.drain_at is not None:
            self.drain_at = None
            self.fleet.act(ev.CloseListeners())

    def _quit(self, process: Process) -> None:
        if process.state is not State.DRAINING:
            process.move(State.DRAINING, self.fleet.now)
        soon = self.fleet.now + QUICK_GRACE
        process.deadline = min(process.deadline or soon, soon)
        process.signals.append("QUIT")
