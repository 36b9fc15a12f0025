"""Ends a worker for the fleet: drains it, aborts it, kills it.

Pure, a part of the fleet.
"""

from __future__ import annotations

from multicore_server.fleet.slots import Process, Slot, State
from multicore_server.fleet.state import FleetState
from multicore_server.ipc.names import Reason

ABORT_GRACE = 2.0  # seconds that a hung worker gets to dump its stacks
DRAIN_MARGIN = 2.0  # seconds beyond graceful_timeout for the app's own shutdown
QUICK_GRACE = 2.0  # seconds to end after QUIT, as in gunicorn's quick shutdown


class Retiring:
    def __init__(self, state: FleetState) -> None:
        self.state = state

    def retire(self, slot: Slot, process: Process, reason: Reason, why: str = "") -> None:
        """Tell a worker to finish what it has in progress and end. Given ``why``, nothing takes its place."""
        reason = process.ending or reason
        if not why:
            self.state.count(slot, reason)
        self.state.tell("draining", f"draining ({why or reason})", process, reason=None if why else reason)
        self.drain(slot, process, reason)
        process.signals.append("TERM")

    def dismiss(self, slot: Slot, why: str) -> None:
        """Retire all workers of a slot."""
        slot.wanted = slot.not_before = None
        for process in slot.processes:
            if process.state is not State.DRAINING:
                self.retire(slot, process, "manual", why)

    def drain(self, slot: Slot, process: Process, reason: Reason) -> None:
        """A worker finishes what it has in progress; see to it that it ends in time."""
        options = self.state.options
        slot.settle(self.state.now, options.policy.backoff_reset)
        process.ending = process.ending or reason
        process.move(State.DRAINING, self.state.now)
        if not (process.aborted or process.killed):
            process.deadline = self.state.now + options.graceful_timeout + DRAIN_MARGIN

    def end_early(self, process: Process, why: str) -> None:
        """A worker that drains is to leave what it has in progress and to end."""
        self.state.tell("ended_early", f"ending it early: {why}", process, "warning")
        self.quit(process)

    def quit(self, process: Process) -> None:
        """SIGQUIT: a worker ends without grace."""
        if process.state is not State.DRAINING:
            process.move(State.DRAINING, self.state.now)
        process.quit = True
        soon = self.state.now + QUICK_GRACE
        process.deadline = min(process.deadline or soon, soon)
        # One that boots has no handler yet: SIGQUIT's default leaves a core file, SIGTERM's does not.
        process.signals.append("TERM" if process.ready_at is None else "QUIT")

    def abort(self, process: Process, reason: Reason) -> None:
        """SIGABRT: a worker that hangs writes its stacks to the error log and ends."""
        process.ending = process.ending or reason
        process.aborted = True
        process.deadline = self.state.now + ABORT_GRACE
        process.signals.append("ABRT")

    def kill(self, process: Process) -> None:
        process.killed = True
        process.deadline = None
        process.signals.append("KILL")

    def escalate(self, process: Process) -> None:
        """A worker has not become ready, or has not ended, in time."""
        if process.state is State.STARTING and not process.aborted:
            late = self.state.options.too_late
            self.state.tell("timeout", f"{late}; aborting it", process, "error", "boot")
            self.abort(process, "boot")
            return
        self.state.tell("killed", "did not exit in time; killing it", process, "warning")
        self.kill(process)
