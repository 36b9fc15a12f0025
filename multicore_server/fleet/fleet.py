"""The fleet: decides which worker runs where, and what to do next.

Pure: `Fleet.observe` takes what has happened. `Fleet.tick` returns the actions that follow, and the time when
the next one is due. Only the arbiter reads clocks, forks, signals and waits. The parts of the fleet share its
state: starting, retiring, aftermath (of an exit), rollout (of a reload), shutdown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from multicore_server.fleet import events as ev
from multicore_server.fleet.aftermath import Endings
from multicore_server.fleet.events import Action, Observation
from multicore_server.fleet.policy import History, Options
from multicore_server.fleet.retiring import Retiring
from multicore_server.fleet.rollout import Reloads, Wanted
from multicore_server.fleet.shutdown import Shutdown
from multicore_server.fleet.slots import Process, Slot, Slots, State
from multicore_server.fleet.starting import Starting
from multicore_server.fleet.state import FleetState
from multicore_server.ipc.names import Reason, ReloadResult

BOOT_FAILED = 3  # exit status, gunicorn's WORKER_BOOT_ERROR
AFTER_PAUSE = 1.0  # seconds that every deadline is away at least after a pause of the arbiter


class Fleet:
    """The slots of one server. ``capacity`` is the number of slots that shared memory was made for.
    ``tries``: it begins with one worker, and `Fit` says how many there will be."""

    def __init__(
        self,
        options: Options,
        workers: int,
        capacity: int,
        random: Callable[[], float] = random.random,
        *,
        tries: bool = False,
    ) -> None:
        self._state = FleetState(options, capacity, random)
        self._retiring = Retiring(self._state)
        self._reloads = Reloads(self._state, self._retiring, Wanted(workers, tries), self._resize)
        self._endings = Endings(self._state, self._reloads)
        self._starting = Starting(self._state, self._retiring, self._reloads)
        self._shutdown: Shutdown | None = None
        self._resize(1 if tries else workers)

    # --- the two entrances ---

    def observe(self, observation: Observation, now: float) -> None:
        """Take note of what has happened; `tick` says what follows from it."""
        self._state.now = now
        OBSERVERS[type(observation)](self, observation)

    def tick(self, now: float) -> tuple[list[Action], float | None]:
        """The actions that are due, and when the next one will be (None: not before something happens).

        Carry them out, observe what they bring about (`Forked`, say), and tick again until there are none.
        """
        if self._shutdown is not None and self._shutdown.halted:
            return [], None
        self._state.now = now
        self._escalate_overdue()
        if not self._state.stopping:
            self._reloads.finish()
            self._starting.advance()
            self._check_all_resting()
        if self._shutdown is not None:
            self._shutdown.advance()
        self._send_signals()
        return self._state.take_actions(), self._next_deadline()

    # --- what can be asked ---

    def processes(self) -> Iterator[Process]:
        return self._state.processes()

    def serving_rows(self) -> frozenset[int]:
        """The scoreboard's rows of the workers that are to get connections."""
        return frozenset(process.row for process in self.processes() if process.state is State.READY)

    def errored(self) -> frozenset[int]:
        """The instances that were given up."""
        return frozenset(slot.instance for slot in self.slots.active() if slot.state is State.ERRORED)

    def find(self, pid: int) -> tuple[Slot, Process] | None:
        """The living worker with this pid."""
        return self._state.find(pid)

    @property
    def slots(self) -> Slots:
        return self._state.slots

    @property
    def workers(self) -> int:
        """How many workers are wanted."""
        return self._state.workers

    @property
    def capacity(self) -> int:
        return self._state.capacity

    @property
    def options(self) -> Options:
        return self._state.options

    @property
    def stopping(self) -> bool:
        return self._state.stopping

    @property
    def reloading(self) -> bool:
        return self._reloads.current is not None

    @property
    def trying(self) -> bool:
        """Whether a worker is to show how many have room."""
        return self._reloads.trying

    @property
    def restarts(self) -> Mapping[Reason, int]:
        """How often a worker was replaced or restarted, by reason, since the start."""
        return self._state.restarts

    @property
    def reload_results(self) -> Mapping[ReloadResult, int]:
        return self._reloads.results

    # --- scaling ---

    def _resize(self, workers: int) -> None:
        """Scale: the highest instance numbers go first, the lowest free ones come first."""
        if workers > self.capacity:
            text = f"there is no room for {workers} workers, only for {self.capacity}; not scaled"
            self._state.tell("refused", f"{text} (restart the server for more)", level="error")
            return
        active = self.slots.active()
        for slot in active[workers:]:
            self._scale_away(slot)
        for slot in self.slots.open(max(0, workers - len(active))):
            self._reloads.joined(slot)
        if workers != self.workers:
            self._state.workers = workers
            self._state.act(ev.Scaled(workers))

    def _scale_away(self, slot: Slot) -> None:
        slot.retired = True
        self._reloads.left(slot)
        self._retiring.dismiss(slot, "scaled down")
        self.slots.forget_if_empty(slot)

    # --- ticks ---

    def _next_deadline(self) -> float | None:
        due = list(self.slots.deadlines())
        if self._shutdown is not None and self._shutdown.drain_at is not None:
            due.append(self._shutdown.drain_at)
        # What is past and still there does not wait for the clock: for a free row, say, or for its turn.
        return min((moment for moment in due if moment > self._state.now), default=None)

    def _send_signals(self) -> None:
        """All at once and last: none is for a worker that is gone or whose fork was not yet reported."""
        for process in self.processes():
            if process.pid:
                for name in process.signals:
                    self._state.act(ev.Signal(process.pid, name))
                process.signals.clear()

    def _escalate_overdue(self) -> None:
        for process in self.processes():
            if process.deadline is not None and process.deadline <= self._state.now:
                self._retiring.escalate(process)

    def _check_all_resting(self) -> None:
        """End when nothing serves and nothing will: no one is left to answer a connection."""
        slots = self.slots.active()
        rests = {slot.rest for slot in slots if slot.vacant}
        if self._reloads.current or not slots or not all(slot.vacant and slot.rest for slot in slots):
            return
        if not self._state.proven:
            self._begin_shutdown(BOOT_FAILED, f"no worker could boot: {self._state.first_words}")
        elif rests == {State.STOPPED}:
            self._begin_shutdown(0, "every worker has stopped")
        elif rests <= {State.STOPPED, State.ERRORED}:
            self._begin_shutdown(BOOT_FAILED, "every worker is errored")

    # --- observations ---

    def _forked(self, forked: ev.Forked) -> None:
        slot = self.slots[forked.instance]
        process = slot.of_generation(forked.generation)
        process.pid = forked.pid
        old = slot.serving
        task = f" to replace pid={old.pid} ({slot.wanted or 'reload'})" if old else ""
        self._state.tell("started", f"started{task}", process)

    def _fork_failed(self, failed: ev.ForkFailed) -> None:
        slot = self.slots[failed.instance]
        process = slot.of_generation(failed.generation)
        slot.processes.remove(process)
        if process.state is State.STARTING:
            self._endings.boot_failed(slot, process, f"could not be forked ({failed.error})", None, "")
        self.slots.forget_if_empty(slot)

    def _ready(self, ready: ev.BecameReady) -> None:
        found = self.find(ready.pid)
        if found is None:
            return
        slot, process = found
        if process.state is not State.STARTING or process.ending is not None:
            return  # it was told to end before it got that far
        self._state.tell("ready", f"ready after {self._state.now - process.started:.2f} s", process)
        if slot.serving is not None:
            self._retiring.retire(slot, slot.serving, slot.wanted or "reload")
        process.move(State.READY, self._state.now)
        process.ready_at = self._state.now
        process.deadline = None
        lifetime = self._state.options.lifetime(self._state.random())
        process.expires = None if lifetime is None else self._state.now + lifetime
        slot.wanted = slot.not_before = None
        self._reloads.became_ready(process)
        self._state.prove()

    def _asked_to_retire(self, asked: ev.AskedToRetire) -> None:
        found = self.find(asked.pid)
        if found is None or found[1].state is State.DRAINING:
            return
        slot, process = found
        if asked.draining:
            self._state.tell(
                "draining", f"draining ({asked.reason}: it got a signal)", process, reason=asked.reason
            )
            self._state.count(slot, asked.reason)
            self._retiring.drain(slot, process, asked.reason)
        elif process.state is State.READY:
            self._starting.want(slot, asked.reason)

    def _hung(self, hung: ev.Hung) -> None:
        found = self.find(hung.pid)
        if found is None or found[1].aborted or found[1].state is State.STARTING:
            return
        text = f"no heartbeat for {hung.seconds:.1f} s (timeout); aborting it, its stacks go to the error log"
        self._state.tell("timeout", text, found[1], "critical", "timeout")
        self._retiring.abort(found[1], "timeout")

    def _over_memory(self, over: ev.OverMemory) -> None:
        found = self.find(over.pid)
        if found is None or found[1].killed:
            return
        slot, process = found
        used = f"uses {over.used / 2**20:.0f} MiB, more than {over.limit / 2**20:.0f} MiB"
        if over.hard:
            self._state.tell("memory", f"{used} (max_memory_kill); killing it", process, "error", "memory")
            process.ending = process.ending or "memory"
            self._retiring.kill(process)
        elif (
            process.state is State.READY
            and not self._reloads.includes(slot)
            and self._starting.want(slot, "memory")
        ):
            self._state.tell(
                "memory", f"{used} (max_memory_restart); replacing it", process, "info", "memory"
            )
            self._starting.damp(slot, process)

    def _exited(self, exited: ev.Exited) -> None:
        found = self.find(exited.pid)
        if found is None:
            return
        slot, process = found
        slot.processes.remove(process)
        self._endings.ended(slot, process, exited)
        self.slots.forget_if_empty(slot)

    def _restart(self, restart: ev.Restart) -> None:
        if self._state.stopping:
            return
        for slot in self.slots.active():
            if restart.instances is None or slot.instance in restart.instances:
                if slot.serving is not None:
                    self._starting.want(slot, restart.reason)
                elif slot.vacant:
                    slot.revive()

    def _reset(self, _: ev.Reset) -> None:
        if self._state.stopping:
            return
        for slot in self.slots.active():
            slot.history = History()
            if slot.rest in (State.ERRORED, State.BACKOFF):
                slot.revive()

    def _scale(self, scale: ev.Scale) -> None:
        if not self._state.stopping and scale.workers >= 0:
            self._resize(scale.workers)
            if self.workers == scale.workers:  # it was not refused
                self._reloads.scaled()

    def _fit(self, fit: ev.Fit) -> None:
        if self._reloads.trying and not self._state.stopping:
            self._reloads.trying = False
            self._resize(fit.workers)

    def _reload(self, _: ev.Reload) -> None:
        if not self._state.stopping:
            self._reloads.request()

    def _commit_failed(self, failed: ev.CommitFailed) -> None:
        """Workers that already run the new configuration are replaced by such with the old one."""
        for slot in self._reloads.not_installed(failed):
            self._starting.want(slot, "reload")

    def _paused(self, paused: ev.Paused) -> None:
        """Whoever has a deadline gets the time of the pause, and a moment to say what he has to say: until
        that is read, nobody is judged."""
        soon = self._state.now + AFTER_PAUSE
        for process in self._state.processes():
            if process.deadline is not None:
                process.deadline = max(process.deadline + paused.seconds, soon)
        if self._shutdown is not None and self._shutdown.drain_at is not None:
            self._shutdown.drain_at += paused.seconds

    def _stop(self, stop: ev.Stop) -> None:
        self._reloads.again = False
        self._reloads.roll_back("the server is stopping")
        if self._shutdown is None:
            self._begin_shutdown(wait=self._state.options.shutdown_delay if stop.graceful else 0.0)
            if stop.graceful:
                return
        assert self._shutdown is not None
        self._shutdown.hurry(graceful=stop.graceful)

    def _begin_shutdown(self, status: int = 0, reason: str | None = None, wait: float = 0.0) -> None:
        self._state.stopping = True
        self._shutdown = Shutdown(self._state, self._retiring, status, reason, wait)


OBSERVERS: dict[type[Observation], Callable[..., None]] = {
    ev.Forked: Fleet._forked,
    ev.ForkFailed: Fleet._fork_failed,
    ev.BecameReady: Fleet._ready,
    ev.AskedToRetire: Fleet._asked_to_retire,
    ev.Exited: Fleet._exited,
    ev.Hung: Fleet._hung,
    ev.OverMemory: Fleet._over_memory,
    ev.Reload: Fleet._reload,
    ev.ReloadPrepared: lambda fleet, prepared: fleet._reloads.prepared(prepared),
    ev.ReloadFailed: lambda fleet, failed: fleet._reloads.unprepared(failed),
    ev.Committed: lambda fleet, _: fleet._reloads.installed(),
    ev.CommitFailed: Fleet._commit_failed,
    ev.Paused: Fleet._paused,
    ev.Restart: Fleet._restart,
    ev.Reset: Fleet._reset,
    ev.Scale: Fleet._scale,
    ev.Fit: Fleet._fit,
    ev.Stop: Fleet._stop,
}
