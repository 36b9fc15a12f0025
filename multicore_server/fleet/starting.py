"""Starts workers: in slots that have none, and as replacements beside workers that serve.

Pure, a part of the fleet. Every planned replacement takes one path, whatever its reason: wanted ->
replacement forked -> ready -> the old one drains.
"""

from __future__ import annotations

from dataclasses import replace

from multicore_server.fleet import events as ev
from multicore_server.fleet.aftermath import PERSISTENT
from multicore_server.fleet.retiring import Retiring
from multicore_server.fleet.rollout import Reloads
from multicore_server.fleet.slots import PEACE, Process, Slot, State
from multicore_server.fleet.state import FleetState
from multicore_server.ipc.names import Reason


class Starting:
    """Starts what is wanted and due, and makes room for it."""

    def __init__(self, state: FleetState, retiring: Retiring, reloads: Reloads) -> None:
        self.state = state
        self._retiring = retiring
        self._reloads = reloads

    def advance(self) -> None:
        """Do what is due."""
        self._expire_lifetimes()
        self._limit_draining()
        if not self._reloads.committing:  # which configuration is in force is known in a moment
            self._fill_vacant()
            self._start_replacements()

    # --- what is wanted ---

    def want(self, slot: Slot, reason: Reason) -> bool:
        """Have the worker that serves replaced; returns whether that is news. A reason that lasts outranks
        one that asks once: it would be lost if the other one's only attempt fails."""
        lasting = reason in PERSISTENT
        if lasting and (slot.wanted in PERSISTENT or (slot.serving and slot.serving.kept)):
            return False
        if not lasting and slot.wanted is not None:
            return False
        if slot.wanted is None:
            slot.queued_at = self.state.now
        slot.wanted = reason
        return True

    def damp(self, slot: Slot, process: Process) -> None:
        """A worker that exceeds its limit soon after it became ready is replaced ever more slowly."""
        slot.settle(self.state.now, self.state.options.policy.backoff_reset)
        if not process.settled:
            slot.history = replace(slot.history, early=slot.history.early + 1)
            slot.not_before = self.state.now + self.state.delay(slot)

    def _expire_lifetimes(self) -> None:
        for slot in self.state.slots.active():
            process = slot.serving
            if process is not None and process.expires is not None and process.expires <= self.state.now:
                process.expires = None
                self.want(slot, "lifetime")

    # --- starts ---

    def _fill_vacant(self) -> None:
        now = self.state.now
        for slot in self.state.slots.active():
            if slot.vacant and (slot.rest is None or (slot.rest is State.BACKOFF and slot.is_due(now))):
                self._start(slot)

    def _start_replacements(self) -> None:
        """Those of a reload before the rest, then whoever has waited longest. In any other order, one that
        comes due again and again would keep the others from their turn."""
        budget = self.state.options.reload_surge - sum(slot.replacing for slot in self.state.slots.values())
        for slot in sorted(self.state.slots.active(), key=self._turn):
            if budget > 0 and self._is_replacement_due(slot):
                budget -= self._start(slot)

    def _turn(self, slot: Slot) -> tuple[bool, float, int]:
        return not self._reloads.includes(slot), slot.queued_at, slot.instance

    def _is_replacement_due(self, slot: Slot) -> bool:
        wanted = slot.wanted is not None or self._reloads.includes(slot)
        waiting = slot.not_before is not None and not slot.is_due(self.state.now)
        return wanted and slot.serving is not None and slot.starting is None and not waiting

    def _start(self, slot: Slot) -> bool:
        row = slot.free_row()
        if row is None:
            self._make_room(slot)
            return False
        process = slot.add_process(self.state.now, row, self._reloads.version_for(slot))
        if self.state.options.listen_timeout:
            process.deadline = self.state.now + self.state.options.listen_timeout
        self.state.act(ev.Fork(slot.instance, process.generation, row, self._reloads.on_trial(process)))
        return True

    # --- room ---

    def _limit_draining(self) -> None:
        limit = self.state.options.draining_limit
        for slot in self.state.slots.active():
            draining = [
                process
                for process in slot.draining
                if not (process.ends_early or self._is_left_in_peace(slot, process))
            ]
            old = "old worker of this instance drains" if limit == 1 else "old workers of this instance drain"
            text = f"more than {limit} {old} (draining_limit)"
            count = sum(not process.ends_early for process in slot.draining)
            for process in draining[: max(0, count - limit)]:
                self._retiring.end_early(process, text)

    def _is_left_in_peace(self, slot: Slot, process: Process) -> bool:
        """Reloads may follow each other within a second, and most requests are answered within some: where
        another worker of the instance serves, the next one can wait for these."""
        return slot.serving is not None and self.state.now < process.since + PEACE

    def _make_room(self, slot: Slot) -> None:
        """All rows of the slot are in use: the oldest worker that drains ends early, unless one does so
        already. The next worker starts when it is gone."""
        draining = slot.draining
        if self._is_left_in_peace(slot, draining[0]):
            return
        if not any(process.ends_early for process in draining):
            text = (
                f"{len(draining)} old workers of this instance drain (draining_limit), its next worker waits"
            )
            self._retiring.end_early(draining[0], text)
