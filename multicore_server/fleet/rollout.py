"""Reloads: what a reload still has to replace, and what it restores when it is rolled back.

Pure, a part of the fleet. A rollout is state that the fleet's ticks advance; it is never a procedure that
blocks. Its configuration is on trial until the first replacement is ready. Until then, any failure restores
everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from multicore_server.fleet import events as ev
from multicore_server.fleet.policy import Decision, History, Options
from multicore_server.fleet.retiring import Retiring
from multicore_server.fleet.slots import Process, Slot, State
from multicore_server.fleet.state import FleetState
from multicore_server.ipc.names import Level, ReloadResult


class Phase(Enum):
    PREPARING = "preparing"  # the shell loads the configuration and binds its addresses
    TRIAL = "trial"  # no replacement has become ready yet
    COMMITTING = "committing"  # the shell puts the new configuration in force
    ROLLING = "rolling"  # committed


class Before(NamedTuple):
    """What a slot was when the rollout took it over."""

    rest: State | None
    not_before: float | None
    history: History


class Wanted(NamedTuple):
    """How many workers a configuration asks for; ``tries``: at most, one is to show how many have room."""

    workers: int
    tries: bool = False


@dataclass(slots=True)
class Rollout:
    started: float
    version: int
    phase: Phase = Phase.PREPARING
    options: Options | None = None
    wanted: Wanted | None = None
    scaled: bool = False  # an operator has asked for another number since it began
    pending: dict[int, Before] = field(default_factory=dict)  # instances that still run the old version
    replaced: int = 0
    failed: set[int] = field(default_factory=set)  # instances that go on with the old version

    def take(self, slot: Slot) -> None:
        """The slot's worker is to be replaced; a slot at rest starts anew."""
        self.pending[slot.instance] = Before(slot.rest, slot.not_before, slot.history)
        slot.not_before = None
        if slot.vacant:
            slot.revive()

    def put_back(self, slot: Slot) -> None:
        """Undo `take`."""
        before = self.pending[slot.instance]
        if slot.serving is not None:
            slot.not_before = before.not_before
        elif slot.vacant and before.rest is not None:
            slot.history = before.history
            slot.hold(before.rest, before.not_before)

    def done_with(self, instance: int, *, failed: bool = False) -> None:
        if self.pending.pop(instance, None) is None:
            return
        if failed:
            self.failed.add(instance)
        else:
            self.replaced += 1


class Reloads:
    """At most one rollout at a time; a reload that is asked for meanwhile follows it, once."""

    def __init__(
        self, state: FleetState, retiring: Retiring, configured: Wanted, resize: Callable[[int], None]
    ) -> None:
        self.state = state
        self._retiring = retiring
        self._resize = resize
        self.configured = configured
        self.trying = configured.tries  # how many have room is not known yet
        self.current: Rollout | None = None
        self.again = False
        self.committed = 0  # the version that is in force
        self.results: Counter[ReloadResult] = Counter()
        self._last = 0

    def request(self) -> None:
        if self.current is not None:
            self.again = True
            self.state.tell("reload_queued", "a reload is in progress; one more follows it")
            return
        self._last += 1
        self.current = Rollout(self.state.now, self._last)
        self.state.act(ev.PrepareReload())

    def prepared(self, prepared: ev.ReloadPrepared) -> None:
        rollout = self.current
        if rollout is None:  # a shutdown came first
            self.state.act(ev.DropReload())
            return
        rollout.phase = Phase.TRIAL
        rollout.options = prepared.options
        rollout.wanted = Wanted(prepared.workers, prepared.tries)
        for slot in self.state.slots.active():
            slot.queued_at = self.state.now
            rollout.take(slot)

    def unprepared(self, failed: ev.ReloadFailed) -> None:
        if self.current is None:  # a shutdown came first
            return
        self.current = None
        text = f"reload failed: {failed.error}; everything stays as it was"
        self._conclude("failed", text, failed.error)
        self._once_more()

    def version_for(self, slot: Slot) -> int:
        """What to start in a slot: the rollout's version if it is to replace this slot's worker. One that
        crashed during the trial comes back with what is in force: that is known to boot."""
        rollout = self.current
        before = rollout.pending.get(slot.instance) if rollout else None
        if rollout is None or before is None:
            return self.committed
        crashed = slot.vacant and before.rest is None
        return self.committed if crashed and rollout.phase is Phase.TRIAL else rollout.version

    @property
    def committing(self) -> bool:
        """Whether the shell is putting a new configuration in force."""
        return self.current is not None and self.current.phase is Phase.COMMITTING

    def on_trial(self, process: Process) -> bool:
        rollout = self.current
        return rollout is not None and rollout.phase is Phase.TRIAL and process.version == rollout.version

    def includes(self, slot: Slot) -> bool:
        """Whether the rollout has yet to replace this slot's worker."""
        return self.current is not None and slot.instance in self.current.pending

    def joined(self, slot: Slot) -> None:
        """A slot was scaled up: during the trial it starts with what is in force, then it is replaced too."""
        if self.current is not None and self.current.phase is Phase.TRIAL:
            self.current.take(slot)

    def left(self, slot: Slot) -> None:
        """A slot was scaled away."""
        if self.current is not None:
            self.current.pending.pop(slot.instance, None)

    def scaled(self) -> None:
        """An operator's later word on the number of workers outranks the configuration's."""
        self.trying = False
        if self.current is not None:
            self.current.scaled = True

    def became_ready(self, process: Process) -> None:
        """A worker is ready; the first one with the rollout's version proves the rollout."""
        rollout = self.current
        if rollout is None or process.version != rollout.version:
            return
        if rollout.phase is Phase.TRIAL:
            self._commit(rollout)
        rollout.done_with(process.instance)

    def take_ended(self, slot: Slot, process: Process, verdict: Decision) -> bool:
        """A worker has ended unplanned: start its slot again with the rollout's version if the old one does
        not boot or is not to be restarted; the slot loses nothing by that. Whether it was done."""
        rollout = self.current
        if rollout is None or slot.instance not in rollout.pending:
            return False
        given_up = verdict is not Decision.RESTART
        if process.version == rollout.version:
            if given_up:
                rollout.done_with(slot.instance, failed=True)
        elif given_up or process.ready_at is None:
            rollout.take(slot)
            return True
        return False

    def not_installed(self, failed: ev.CommitFailed) -> list[Slot]:
        """The shell could not put the new configuration in force; the slots whose workers already run it."""
        rollout, self.current = self.current, None
        if rollout is None:  # a shutdown came first
            return []
        text = f"reload failed: {failed.error}; the old configuration stays in force"
        self._conclude("failed", text, failed.error)
        self._once_more()
        slots = self.state.slots.active()
        return [slot for slot in slots if slot.serving and slot.serving.version == rollout.version]

    def roll_back(self, why: str, cause: str = "") -> None:
        """Put everything back; after the commit there is nothing to put back, only no more to replace.
        ``cause`` is an event's, a part of ``why``."""
        rollout, self.current = self.current, None
        if rollout is None or rollout.phase in (Phase.COMMITTING, Phase.ROLLING):
            return
        if rollout.phase is Phase.TRIAL:  # before that, the shell's answer will find no rollout
            self._put_all_back(rollout)
            self.state.act(ev.DropReload())
        self._conclude("rolled_back", f"reload rolled back: {why}", cause)
        self._once_more()

    def _put_all_back(self, rollout: Rollout) -> None:
        for slot in self.state.slots.active():
            candidate = slot.starting
            if candidate is not None and candidate.version == rollout.version:
                self._retiring.retire(slot, candidate, "reload", "the reload is rolled back")
            rollout.put_back(slot)
        if self.state.proven:  # maybe only since a slot was taken that waited for it
            self.state.prove()

    def finish(self) -> None:
        """End the rollout when nothing is left to replace."""
        rollout = self.current
        if rollout is None or rollout.pending:
            return
        if rollout.phase is Phase.TRIAL:  # no worker is asked for: nobody to try it on
            self._commit(rollout)
        if rollout.phase is not Phase.ROLLING:
            return
        self.current = None
        self._report(rollout)
        self._once_more()

    def _commit(self, rollout: Rollout) -> None:
        rollout.phase = Phase.COMMITTING
        self.state.act(ev.CommitReload())

    def installed(self) -> None:
        """The shell has put the new configuration in force."""
        rollout = self.current
        if rollout is None:  # a shutdown came first
            return
        rollout.phase = Phase.ROLLING
        self.committed = rollout.version
        assert rollout.options is not None
        assert rollout.wanted is not None
        self.state.options = rollout.options
        # As with PM2, what was scaled stays so, unless the configuration has another number; 0 is WINCH's.
        # An operator's word since the reload began outranks both.
        if not rollout.scaled and (rollout.wanted != self.configured or not self.state.workers):
            self._obey(rollout.wanted)
        self.configured = rollout.wanted

    def _obey(self, wanted: Wanted) -> None:
        """Those that run have room; the others wait until one has shown what it needs."""
        self.trying = wanted.tries
        running = min(self.state.workers, wanted.workers)
        self._resize(max(running, 1) if wanted.tries else wanted.workers)

    def _report(self, rollout: Rollout) -> None:
        workers = "worker" if rollout.replaced == 1 else "workers"
        took = f"{rollout.replaced} {workers} replaced in {self.state.now - rollout.started:.1f} s"
        if not rollout.failed:
            self._conclude("ok", f"reload done: {took}")
            return
        left = ", ".join(str(instance) for instance in sorted(rollout.failed))
        self._conclude("failed", f"reload incomplete: {took}, but not instance {left} (see above)")

    def _conclude(self, result: ReloadResult, text: str, cause: str = "") -> None:
        self.results[result] += 1
        level: Level = "info" if result == "ok" else "error"
        self.state.tell("reload", text, level=level, reason=result, cause=cause)

    def _once_more(self) -> None:
        if self.again and not self.state.stopping:
            self.again = False
            self.request()
