"""The fleet: which worker runs where, and what to do next.

Pure: `Fleet.observe` takes what has happened, `Fleet.tick` gives the actions that follow and the moment at
which the next one is due. The arbiter alone reads clocks, forks, signals and waits. Every planned
replacement takes one path, whatever its reason: wanted -> replacement forked -> ready -> the old one drains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from multicore_server.fleet import events as ev
from multicore_server.fleet.aftermath import PERSISTENT, Endings
from multicore_server.fleet.events import Action, Level, Observation, Reason
from multicore_server.fleet.policy import History, Options, delay
from multicore_server.fleet.rollout import Reloads
from multicore_server.fleet.shutdown import Shutdown
from multicore_server.fleet.slots import Process, Slot, Slots, State

BOOT_FAILED = 3  # exit status, gunicorn's WORKER_BOOT_ERROR


class Fleet:
    """The slots of one server. ``capacity`` is the number of slots that shared memory was made for."""

    def __init__(
        self, options: Options, workers: int, capacity: int, random: Callable[[], float] = random.random
    ) -> None:
        self.options = options
        self.capacity = capacity
        self.random = random
        self.workers = 0
        self.slots = Slots()
        self.endings = Endings(self)
        self.reloads = Reloads(self, workers)
        self.shutdown: Shutdown | None = None
        self.now = 0.0
        self._actions: list[Action] = []
        self.resize(workers)

    # --- the two entrances ---

    def observe(self, observation: Observation, now: float) -> None:
        """Take note of what has happened; `tick` says what follows from it."""
        self.now = now
        OBSERVERS[type(observation)](self, observation)

    def tick(self, now: float) -> tuple[list[Action], float | None]:
        """The actions that are due, and when the next one will be (None: not before something happens).

        Carry them out, observe what they bring about (`Forked`, say), and tick again until there are none.
        """
        if self.shutdown is not None and self.shutdown.halted:
            return [], None
        self.now = now
        self._escalate_overdue()
        if self.shutdown is None:
            self.reloads.finish()
            self._expire_lifetimes()
            self._fill_vacant()
            self._start_replacements()
            self._check_all_resting()
        if self.shutdown is not None:
            self.shutdown.advance()
        self._send_signals()
        actions, self._actions = self._actions, []
        return actions, self._next_deadline()

    # --- what can be asked ---

    def processes(self) -> Iterator[Process]:
        return self.slots.processes()

    def serving_rows(self) -> frozenset[int]:
        """The scoreboard's rows of the workers that are to get connections."""
        return frozenset(process.row for process in self.processes() if process.state is State.READY)

    def find(self, pid: int) -> tuple[Slot, Process] | None:
        """The living worker with this pid."""
        return self.slots.find(pid)

    def delay(self, slot: Slot) -> float:
        return delay(self.options.policy, slot.history, self.random())

    # --- what its parts do with it ---

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def tell(
        self, kind: str, text: str, process: Process | None = None,
        level: Level = "info", reason: str | None = None,
    ) -> None:  # fmt: skip
        who = (process.instance, process.generation, process.pid or None) if process else ()
        self.act(ev.Event(kind, text, level, reason, *who))

    def resize(self, workers: int) -> None:
        """Scale: the highest instance numbers go first, the lowest free ones come first."""
        if workers > self.capacity:
            text = f"{workers} workers are more than the {self.capacity} that there is room for; not scaled"
            self.tell("refused", f"{text} (restart the server for more)", level="error")
            return
        active = self.slots.active()
        for slot in active[workers:]:
            self._scale_away(slot)
        for _ in range(workers - len(active)):
            self.reloads.joined(self.slots.open())
        if workers != self.workers:
            self.workers = workers
            self.act(ev.Scaled(workers))

    # --- ticks ---

    def _next_deadline(self) -> float | None:
        due = list(self.slots.deadlines())
        if self.shutdown is not None and self.shutdown.drain_at is not None:
            due.append(self.shutdown.drain_at)
        # What is past and still there does not wait for the clock: for a free row, say, or for its turn.
        return min((moment for moment in due if moment > self.now), default=None)

    def _send_signals(self) -> None:
        """All at once and last: none is for a worker that is gone or whose fork was not yet reported."""
        for process in self.processes():
            if process.pid:
                self._actions += [ev.Signal(process.pid, name) for name in process.signals]
                process.signals.clear()

    def _escalate_overdue(self) -> None:
        for process in self.processes():
            if process.deadline is not None and process.deadline <= self.now:
                self.endings.escalate(process)

    def _expire_lifetimes(self) -> None:
        for slot in self.slots.active():
            process = slot.serving
            if process is not None and process.expires is not None and process.expires <= self.now:
                process.expires = None
                self._want(slot, "lifetime")

    def _fill_vacant(self) -> None:
        for slot in self.slots.active():
            if slot.vacant and (slot.rest is None or (slot.rest is State.BACKOFF and slot.is_due(self.now))):
                self._start(slot)

    def _start_replacements(self) -> None:
        budget = self.options.reload_surge - sum(slot.replacing for slot in self.slots.values())
        for slot in self.slots.active():
            waiting = slot.not_before is not None and not slot.is_due(self.now)
            wanted = slot.wanted is not None or self.reloads.includes(slot)
            if budget > 0 and wanted and slot.serving and not slot.starting and not waiting:
                budget -= self._start(slot)

    def _start(self, slot: Slot) -> bool:
        row = slot.free_row()
        if row is None:  # three are still draining: the next one that ends makes room
            return False
        process = slot.begin(self.now, row, self.reloads.version_for(slot))
        process.deadline = self.now + self.options.listen_timeout
        self.act(ev.Fork(slot.instance, process.generation, row, self.reloads.on_trial(process)))
        return True

    def _check_all_resting(self) -> None:
        """End when nothing serves and nothing will: no one is left to answer a connection."""
        slots = self.slots.active()
        rests = {slot.rest for slot in slots if slot.vacant}
        if self.reloads.current or not slots or not all(slot.vacant and slot.rest for slot in slots):
            return
        if not self.endings.proven:
            self.shutdown = Shutdown(self, BOOT_FAILED, f"no worker could boot: {self.endings.first_words}")
        elif rests == {State.STOPPED}:
            self.shutdown = Shutdown(self, 0, "every worker has stopped")
        elif rests <= {State.STOPPED, State.ERRORED}:
            self.shutdown = Shutdown(self, BOOT_FAILED, "every worker is errored")

    # --- observations ---

    def _forked(self, forked: ev.Forked) -> None:
        slot = self.slots[forked.instance]
        process = slot.of_generation(forked.generation)
        process.pid = forked.pid
        old = slot.serving
        task = f" to replace pid={old.pid} ({slot.wanted or 'reload'})" if old else ""
        self.tell("started", f"started{task}", process)

    def _fork_failed(self, failed: ev.ForkFailed) -> None:
        slot = self.slots[failed.instance]
        process = slot.of_generation(failed.generation)
        slot.processes.remove(process)
        if process.state is State.STARTING:
            self.endings.boot_failed(slot, process, f"could not be forked ({failed.error})", None, "")
        self.slots.forget_if_empty(slot)

    def _ready(self, ready: ev.BecameReady) -> None:
        found = self.find(ready.pid)
        if found is None:
            return
        slot, process = found
        if process.state is not State.STARTING or process.ending is not None:
            return  # it was told to end before it got that far
        self.tell("ready", f"ready after {self.now - process.started:.2f} s", process)
        if slot.serving is not None:
            self.endings.retire(slot, slot.serving, slot.wanted or "reload")
        process.move(State.READY, self.now)
        process.ready_at = self.now
        process.deadline = None
        lifetime = self.options.lifetime(self.random())
        process.expires = None if lifetime is None else self.now + lifetime
        slot.wanted = slot.not_before = None
        self.reloads.became_ready(process)
        self.endings.prove()

    def _asked_to_retire(self, asked: ev.AskedToRetire) -> None:
        found = self.find(asked.pid)
        if found is None or found[1].state is State.DRAINING:
            return
        slot, process = found
        if asked.draining:
            self.tell("draining", f"draining ({asked.reason}: it was told to)", process, reason=asked.reason)
            self.endings.count(slot, asked.reason)
            self.endings.drain(slot, process, asked.reason)
        elif process.state is State.READY:
            self._want(slot, asked.reason)

    def _hung(self, hung: ev.Hung) -> None:
        found = self.find(hung.pid)
        if found is None or found[1].aborted or found[1].state is State.STARTING:
            return
        text = f"no heartbeat for {hung.seconds:.1f} s (timeout); aborting it, its stacks go to the error log"
        self.tell("timeout", text, found[1], "critical", "timeout")
        self.endings.abort(found[1], "timeout")

    def _over_memory(self, over: ev.OverMemory) -> None:
        found = self.find(over.pid)
        if found is None or found[1].killed:
            return
        slot, process = found
        used = f"uses {over.used / 2**20:.0f} MiB, more than {over.limit / 2**20:.0f} MiB"
        if over.hard:
            self.tell("memory", f"{used} (max_memory_kill); killing it", process, "error", "memory")
            process.ending = process.ending or "memory"
            self.endings.kill(process)
        elif process.state is State.READY and not self.reloads.includes(slot) and self._want(slot, "memory"):
            self.tell("memory", f"{used} (max_memory_restart); replacing it", process, "info", "memory")
            self._damp(slot, process)

    def _exited(self, exited: ev.Exited) -> None:
        found = self.find(exited.pid)
        if found is None:
            return
        slot, process = found
        slot.processes.remove(process)
        self.endings.ended(slot, process, exited)
        self.slots.forget_if_empty(slot)

    def _restart(self, restart: ev.Restart) -> None:
        for slot in self.slots.active():
            if restart.instances is None or slot.instance in restart.instances:
                if slot.serving is not None:
                    self._want(slot, restart.reason)
                elif slot.vacant:
                    slot.revive()

    def _reset(self, _: ev.Reset) -> None:
        for slot in self.slots.active():
            slot.history = History()
            if slot.rest in (State.ERRORED, State.BACKOFF):
                slot.revive()

    def _scale(self, scale: ev.Scale) -> None:
        if self.shutdown is None and scale.workers >= 0:
            self.resize(scale.workers)
            self.reloads.scaled()

    def _reload(self, _: ev.Reload) -> None:
        if self.shutdown is None:
            self.reloads.request()

    def _stop(self, stop: ev.Stop) -> None:
        self.reloads.again = False
        self.reloads.roll_back("the server is stopping")
        if self.shutdown is None:
            self.shutdown = Shutdown(self, wait=self.options.shutdown_delay if stop.graceful else 0.0)
            if stop.graceful:
                return
        self.shutdown.hurry(graceful=stop.graceful)

    # --- one path for all planned replacements ---

    def _want(self, slot: Slot, reason: Reason) -> bool:
        """Have the worker that serves replaced; whether that is news. A reason that lasts outranks one that
        asks once: it would be lost if the other one's only attempt fails."""
        lasting = reason in PERSISTENT
        if lasting and (slot.wanted in PERSISTENT or (slot.serving and slot.serving.kept)):
            return False
        if not lasting and slot.wanted is not None:
            return False
        slot.wanted = reason
        return True

    def _damp(self, slot: Slot, process: Process) -> None:
        """A worker that exceeds its limit soon after it became ready is replaced ever more slowly."""
        slot.settle(self.now, self.options.policy.backoff_reset)
        if not process.settled:
            slot.history = replace(slot.history, early=slot.history.early + 1)
            slot.not_before = self.now + self.delay(slot)

    def _scale_away(self, slot: Slot) -> None:
        slot.retired = True
        self.reloads.left(slot)
        self.endings.dismiss(slot, "scaled down")
        self.slots.forget_if_empty(slot)


OBSERVERS: dict[type[Observation], Callable[..., None]] = {
    ev.Forked: Fleet._forked,
    ev.ForkFailed: Fleet._fork_failed,
    ev.BecameReady: Fleet._ready,
    ev.AskedToRetire: Fleet._asked_to_retire,
    ev.Exited: Fleet._exited,
    ev.Hung: Fleet._hung,
    ev.OverMemory: Fleet._over_memory,
    ev.Reload: Fleet._reload,
    ev.ReloadPrepared: lambda fleet, prepared: fleet.reloads.prepared(prepared),
    ev.ReloadFailed: lambda fleet, failed: fleet.reloads.unprepared(failed),
    ev.Restart: Fleet._restart,
    ev.Reset: Fleet._reset,
    ev.Scale: Fleet._scale,
    ev.Stop: Fleet._stop,
}
