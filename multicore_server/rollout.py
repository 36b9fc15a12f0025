"""Reloads: what a reload still has to replace, and what it puts back when it is rolled back.

Pure, a part of the fleet. A rollout is state that the fleet's ticks advance, never a procedure that somebody
waits for. Its configuration is on trial until the first replacement is ready: until then, any failure puts
everything back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from multicore_server import events as ev
from multicore_server.events import Reason
from multicore_server.policy import History
from multicore_server.slots import Process, Slot, State

if TYPE_CHECKING:
    from multicore_server.fleet import Fleet, Options


class Phase(Enum):
    PREPARING = "preparing"  # the shell loads the configuration and binds its addresses
    TRIAL = "trial"  # no replacement has become ready yet
    ROLLING = "rolling"  # committed


class Before(NamedTuple):
    """What a slot was when the rollout took it over."""

    rest: State | None
    history: History
    wanted: Reason | None
    retry: bool


@dataclass(slots=True)
class Rollout:
    started: float
    version: int
    phase: Phase = Phase.PREPARING
    options: Options | None = None
    workers: int = 0
    pending: dict[int, Before] = field(default_factory=dict)  # instances that still run the old version
    replaced: int = 0
    failed: set[int] = field(default_factory=set)  # instances that go on with the old version

    def take(self, slot: Slot) -> None:
        """The slot's worker is to be replaced; a slot at rest starts anew."""
        self.pending[slot.instance] = Before(slot.rest, slot.history, slot.wanted, slot.retry)
        slot.wanted, slot.retry = "reload", True
        slot.not_before = None
        if slot.vacant:
            slot.revive()

    def put_back(self, slot: Slot, now: float) -> None:
        """Undo `take`."""
        before = self.pending.get(slot.instance)
        if before is None:
            return
        slot.wanted, slot.retry = before.wanted, before.retry
        if slot.vacant and before.rest is not None:
            slot.history = before.history
            slot.hold(before.rest, now if before.rest is State.BACKOFF else None)

    def done_with(self, instance: int, *, failed: bool = False) -> None:
        if self.pending.pop(instance, None) is None:
            return
        if failed:
            self.failed.add(instance)
        else:
            self.replaced += 1


class Reloads:
    """At most one rollout at a time; a reload that is asked for meanwhile follows it, once."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.current: Rollout | None = None
        self.again = False
        self.committed = 0  # the version that is in force
        self._last = 0

    def request(self) -> None:
        if self.current is not None:
            self.again = True
            self.fleet.tell("reload", "a reload is under way; one more will follow it")
            return
        self._last += 1
        self.current = Rollout(self.fleet.now, self._last)
        self.fleet.act(ev.PrepareReload())

    def prepared(self, prepared: ev.ReloadPrepared) -> None:
        rollout = self.current
        if rollout is None:  # a shutdown came first
            self.fleet.act(ev.DropReload())
            return
        rollout.phase = Phase.TRIAL
        rollout.options, rollout.workers = prepared.options, prepared.workers
        for slot in self.fleet.active():
            rollout.take(slot)

    def unprepared(self, failed: ev.ReloadFailed) -> None:
        self.current = None
        text = f"reload failed: {failed.error}; everything stays as it was"
        self.fleet.tell("reload", text, level="error", reason="failed")
        self._once_more()

    def version_for(self, slot: Slot) -> int:
        """A slot under the rollout gets its version; all others stay with what is in force."""
        rollout = self.current
        return rollout.version if rollout and slot.instance in rollout.pending else self.committed

    def on_trial(self, process: Process) -> bool:
        rollout = self.current
        return rollout is not None and rollout.phase is Phase.TRIAL and process.version == rollout.version

    def is_outdated(self, slot: Slot, ready: Process) -> bool:
        """Whether the rollout has yet to replace this process; a ready candidate proves the rollout."""
        rollout = self.current
        if rollout is None or slot.instance not in rollout.pending:
            return False
        if ready.version != rollout.version:
            return True
        if rollout.phase is Phase.TRIAL:
            self._commit(rollout)
        rollout.done_with(slot.instance)
        return False

    def give_up_on(self, instance: int) -> None:
        if self.current is not None:
            self.current.done_with(instance, failed=True)

    def roll_back(self, cause: str) -> None:
        """Put everything back; after the commit there is nothing to put back, only no more to replace."""
        rollout, self.current = self.current, None
        if rollout is None or rollout.phase is Phase.ROLLING:
            return
        for slot in self.fleet.active():
            for process in slot.processes:
                if process.version == rollout.version and process.state is State.STARTING:
                    self.fleet.retire(slot, process, "reload")
            rollout.put_back(slot, self.fleet.now)
        self.fleet.act(ev.DropReload())
        text = f"reload rolled back: {cause}; the old workers go on"
        self.fleet.tell("reload", text, level="error", reason="rolled_back")
        self._once_more()

    def finish(self) -> None:
        """End the rollout when nothing is left to replace."""
        rollout = self.current
        if rollout is None or rollout.phase is Phase.PREPARING:
            return
        gone = rollout.pending.keys() - {slot.instance for slot in self.fleet.active()}
        for instance in gone:
            del rollout.pending[instance]
        if rollout.pending:
            return
        if rollout.phase is Phase.TRIAL:  # nobody is left to try it on
            self._commit(rollout)
        self.current = None
        self._report(rollout)
        self._once_more()

    def _commit(self, rollout: Rollout) -> None:
        rollout.phase = Phase.ROLLING
        self.committed = rollout.version
        assert rollout.options is not None
        self.fleet.options = rollout.options
        self.fleet.act(ev.CommitReload())
        self.fleet.resize(rollout.workers)

    def _report(self, rollout: Rollout) -> None:
        took = f"{rollout.replaced} workers replaced in {self.fleet.now - rollout.started:.1f} s"
        if not rollout.failed:
            self.fleet.tell("reload", f"reload done: {took}", reason="ok")
            return
        left = ", ".join(str(instance) for instance in sorted(rollout.failed))
        text = f"reload incomplete: {took}, but not instance {left} (see above)"
        self.fleet.tell("reload", text, level="error", reason="failed")

    def _once_more(self) -> None:
        if self.again and self.fleet.shutdown is None:
            self.again = False
            self.request()
