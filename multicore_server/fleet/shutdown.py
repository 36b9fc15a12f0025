"""Stops a server: it keeps answering for a while, drains and exits; or it exits at once.

Pure, a part of the fleet. TERM is graceful; INT and QUIT are not. Each of them acts in every state.
"""

from __future__ import annotations

from multicore_server.fleet import events as ev
from multicore_server.fleet.retiring import Retiring
from multicore_server.fleet.state import FleetState


class Shutdown:
    """A shutdown in progress, with the exit status and the reason that the arbiter will end with."""

    def __init__(
        self,
        state: FleetState,
        retiring: Retiring,
        status: int = 0,
        reason: str | None = None,
        wait: float = 0.0,
    ) -> None:
        self.state = state
        self._retiring = retiring
        self.status = status
        self.reason = reason
        self.drain_at: float | None = state.now + wait
        self.quick = False
        self.halted = False
        if wait:
            state.tell("stopping", f"still answering for {wait:g} s (shutdown_delay)")

    def hurry(self, *, graceful: bool) -> None:
        """A further signal: the wait is over; without grace, so are the requests in progress."""
        if self.drain_at is not None:
            self.drain_at = self.state.now
        if not graceful and not self.quick:
            self.quick = True
            self._close()
            for process in self.state.processes():
                self._retiring.quit(process)

    def advance(self) -> None:
        state = self.state
        nobody = not any(state.processes())
        if self.drain_at is not None and (nobody or self.drain_at <= state.now):
            self._close()
            for slot in state.slots.values():
                self._retiring.dismiss(slot, "the server is stopping")
        if nobody:
            self.halted = True
            state.act(ev.Halt(self.status, self.reason))

    def _close(self) -> None:
        if self.drain_at is not None:
            self.drain_at = None
            self.state.act(ev.CloseListeners())
