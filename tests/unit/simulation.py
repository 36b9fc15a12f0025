"""A tiny operating system for the fleet: it carries out the actions, and has workers boot, drain and die.

It also holds the fleet to its word: no signal for a process that is gone, no row used twice, no tick before
the next deadline with anything to do, nothing after the end.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from multicore_server.fleet import events as ev
from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.policy import Options, RestartPolicy
from multicore_server.fleet.slots import SLOT_MOVES, Process, State
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT

MIB = 2**20
MOST_ROUNDS = 50  # ticks at one moment; more is a busy loop


@dataclass(frozen=True)
class Plan:
    """What a worker will do. Times are seconds, None: never."""

    boot: float | None = 1.0  # from the fork until it is ready, or until it fails
    fails: int | str | None = None  # it does not become ready but ends so: exit code, or name of a signal
    words: str = ""  # its last ones, if it fails
    drain: float | None = 0.5  # from TERM or QUIT until it ends
    abort: float | None = 0.0  # from ABRT until it ends
    forks: bool = True


HANGS = Plan(boot=None)
BROKEN = Plan(boot=0.5, fails=1, words="no module named app")


class Due(NamedTuple):
    """Something that a process will do."""

    at: float
    order: int
    pid: int
    what: str | int  # "ready", an exit code, or the name of a signal that it dies of


class Simulation:
    """A fleet and its world. ``plans`` is by worker's name ("0.1": instance 0, generation 1)."""

    def __init__(self, workers: int, options: Options, capacity: int = 8, *, tries: bool = False) -> None:
        self.chance = 0.0  # every random number
        self.fleet = Fleet(options, workers, capacity, self._random, tries=tries)
        self.capacity = capacity
        self.now = 0.0
        self.plan = Plan()
        self.plans: dict[str, Plan] = {}
        self.prepares: ev.ReloadPrepared | ev.ReloadFailed | None = None  # None: answered by the test
        self.commit_fails = ""  # why the shell cannot put a new configuration in force
        self.holds_forks = False  # forks are answered by `answer_forks` alone
        self.alive: dict[int, ev.Fork] = {}
        self.halted: ev.Halt | None = None
        self.events: list[ev.Event] = []
        self.actions: list[ev.Action] = []
        self.moves: set[tuple[State | None, State | None]] = set()  # of slots, from tick to tick
        self._states: dict[int, State] = {}
        self._history: list[str] = []
        self._held: list[ev.Fork] = []
        self._due: list[Due] = []
        self._order = 0
        self._pid = 100
        self._generations: dict[int, int] = {}
        self._words: dict[int, str] = {}
        self.is_loading = False  # a PrepareReload is not answered yet
        self._candidate = False
        self._closed = False
        self._deadline: float | None = 0.0

    # --- what tests do and ask ---

    def observe(self, observation: ev.Observation) -> None:
        """Something happens now."""
        self._observe(observation)
        self.settle()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while (moment := self._next_moment()) is not None and moment <= until:
            self._advance(moment)
        self.now = until
        self.settle()

    def leap(self, seconds: float) -> None:
        """The clock jumps: deadlines and what processes did meanwhile come late and together."""
        self.now += seconds
        self._happen()
        self.settle()

    def end(self, name: str, how: int | str) -> None:
        """A worker dies, by exit code or by signal."""
        self._die(self.pid(name), how)
        self.settle()

    def pid(self, name: str) -> int:
        return next(pid for pid in self.alive if self.name(pid) == name)

    def name(self, pid: int) -> str:
        return worker(self.alive[pid])

    def history(self) -> list[str]:
        """What has happened since the last call, a line each: when, what, to whom."""
        lines, self._history = self._history, []
        return lines

    def states(self) -> list[str]:
        return [str(slot.state) for slot in self.fleet.slots.active()]

    def ready(self) -> list[str]:
        return sorted(worker(p) for p in self.fleet.processes() if p.state is State.READY)

    def said(self, kind: str) -> list[str]:
        """The texts of the events of this kind."""
        return [event.text for event in self.events if event.kind == kind]

    def answer_forks(self) -> None:
        held, self._held = self._held, []
        for fork in held:
            self._fork(fork)
        self.settle()

    # --- the world ---

    def _observe(self, observation: ev.Observation) -> None:
        if isinstance(observation, (ev.ReloadPrepared, ev.ReloadFailed)):
            self.is_loading = False
            self._candidate = isinstance(observation, ev.ReloadPrepared)
        self.fleet.observe(observation, self.now)

    def _random(self) -> float:
        return self.chance

    def _note(self, what: str) -> None:
        self._history.append(f"{round(self.now, 3):g} {what}")

    def _next_moment(self) -> float | None:
        moments = [due.at for due in self._due[:1]]
        if self._deadline is not None:
            moments.append(self._deadline)
        return min(moments, default=None)

    def _advance(self, moment: float) -> None:
        before = self.now + (moment - self.now) * 0.999
        if self.now < before < moment:
            assert self.fleet.tick(before) == ([], self._deadline), "something was due before the deadline"
        self.now = max(moment, self.now)
        self._happen()
        self.settle()

    def _happen(self) -> None:
        while self._due and self._due[0].at <= self.now:
            _, _, pid, what = heapq.heappop(self._due)
            if pid not in self.alive:
                continue
            if what == "ready":
                self._note(f"ready {self.name(pid)}")
                self.fleet.observe(ev.BecameReady(pid), self.now)
            else:
                self._die(pid, what)

    def _die(self, pid: int, how: int | str) -> None:
        self._note(f"end {self.name(pid)}")
        del self.alive[pid]
        code, signal = (how, None) if isinstance(how, int) else (None, how)
        self.fleet.observe(ev.Exited(pid, code, signal, words=self._words.pop(pid, "")), self.now)

    def settle(self) -> None:
        """Tick and carry out until nothing is left to do."""
        for _ in range(MOST_ROUNDS):
            actions, self._deadline = self.fleet.tick(self.now)
            self._check_moves()
            if not actions:
                assert self._deadline is None or self._deadline > self.now, "a busy loop"
                return
            for action in actions:
                assert self.halted is None, f"{action} after the end"
                self.actions.append(action)
                self._carry_out(action)
        raise AssertionError("never settles")

    def _check_moves(self) -> None:
        """Slots move by the table."""
        states = {instance: slot.state for instance, slot in self.fleet.slots.items()}
        for instance in states.keys() | self._states.keys():
            before, after = self._states.get(instance), states.get(instance)
            if before is not after:
                assert after in SLOT_MOVES[before], f"instance {instance} from {before} to {after}"
                self.moves.add((before, after))
        self._states = states

    def _carry_out(self, action: ev.Action) -> None:
        if isinstance(action, ev.Event):
            self.events.append(action)
        elif isinstance(action, ev.Fork):
            self._check_fork(action)
            if self.holds_forks:
                self._held.append(action)
            else:
                self._fork(action)
        elif isinstance(action, ev.Signal):
            self._signal(action)
        elif isinstance(action, ev.Scaled):
            self._note(f"scaled {action.workers}")
        elif isinstance(action, ev.Halt):
            assert not self.alive
            self.halted = action
            self._note(f"halt {action.status}")
        else:
            self._configure(action)

    def _configure(self, action: ev.Action) -> None:
        if isinstance(action, ev.CloseListeners):
            assert not self._closed
            self._closed = True
            self._note("close")
        elif isinstance(action, ev.PrepareReload):
            assert not self.is_loading
            self._note("prepare")
            self.is_loading = True
            if self.prepares is not None:
                self._observe(self.prepares)
        else:
            assert self._candidate, f"{action} without a prepared configuration"
            self._candidate = False
            self._note("commit" if isinstance(action, ev.CommitReload) else "drop")
            if isinstance(action, ev.CommitReload):
                self._observe(ev.CommitFailed(self.commit_fails) if self.commit_fails else ev.Committed())

    def _check_fork(self, fork: ev.Fork) -> None:
        assert 0 <= fork.instance < self.capacity
        assert fork.row // ROWS_PER_SLOT == fork.instance, "a row of another slot"
        assert fork.row not in {other.row for other in [*self.alive.values(), *self._held]}, "a shared row"
        assert fork.generation > self._generations.get(fork.instance, 0), "generations grow"
        assert self._candidate or not fork.candidate
        self._generations[fork.instance] = fork.generation

    def _fork(self, fork: ev.Fork) -> None:
        plan = self.plans.get(worker(fork), self.plan)
        self._note(f"{'try' if fork.candidate else 'fork'} {worker(fork)}")
        if not plan.forks:
            self.fleet.observe(ev.ForkFailed(fork.instance, fork.generation, "no memory"), self.now)
            return
        self._pid += 1
        self.alive[self._pid] = fork
        self._words[self._pid] = plan.words
        self.fleet.observe(ev.Forked(fork.instance, fork.generation, self._pid), self.now)
        self._schedule(plan.boot, self._pid, "ready" if plan.fails is None else plan.fails)

    def _signal(self, signal: ev.Signal) -> None:
        assert signal.pid in self.alive, f"{signal} for a process that is gone"
        self._note(f"{signal.name} {self.name(signal.pid)}")
        plan = self.plans.get(self.name(signal.pid), self.plan)
        if signal.name == "KILL":
            self._schedule(0.0, signal.pid, "SIGKILL")
        elif signal.name == "ABRT":
            self._schedule(plan.abort, signal.pid, "SIGABRT")
        else:
            self._schedule(plan.drain, signal.pid, 0)

    def _schedule(self, seconds: float | None, pid: int, what: str | int) -> None:
        if seconds is not None:
            self._order += 1
            heapq.heappush(self._due, Due(self.now + seconds, self._order, pid, what))


def worker(it: ev.Fork | Process) -> str:
    """A worker's name in histories: instance 0, generation 1 is 0.1."""
    return f"{it.instance}.{it.generation}"


def lines(text: str) -> list[str]:
    """A history as a block of text."""
    return [line.strip() for line in text.strip().splitlines()]


# --- fleets to begin with ---

OPTIONS = Options(listen_timeout=10.0, graceful_timeout=5.0)
POLICY = set(RestartPolicy.__dataclass_fields__)


def options(**settings: Any) -> Options:
    policy = {name: settings.pop(name) for name in POLICY & settings.keys()}
    return replace(OPTIONS, policy=RestartPolicy(**policy), **settings)


def new(workers: int = 2, **settings: Any) -> Simulation:
    """A fleet that has not begun; 0 s. Settings are those of Options and of RestartPolicy."""
    return Simulation(workers, options(**settings))


def serving(workers: int = 2, **settings: Any) -> Simulation:
    """A fleet that became ready at 1 s; 2 s."""
    world = new(workers, **settings)
    world.run(2)
    assert world.states() == ["ready"] * workers
    world.history()
    return world


def over_memory(world: Simulation, name: str, *, hard: bool = False) -> None:
    world.observe(ev.OverMemory(world.pid(name), hard, 300 * MIB, 200 * MIB))


def hup(world: Simulation, workers: int = 2, **settings: Any) -> None:
    """HUP, with a configuration that loads at once."""
    world.prepares = ev.ReloadPrepared(options(**settings), workers)
    world.observe(ev.Reload())


def resting() -> Simulation:
    """One stopped, one errored, one in backoff, one ready. 15 s."""
    settings = {"stop_exit_codes": frozenset({7}), "max_restarts": 2, "exp_backoff_restart_delay": 9.0}
    world = serving(4, **settings)
    world.plans = {"1.2": BROKEN, "1.3": BROKEN, "2.2": BROKEN}
    world.end("0.1", 7)
    world.end("1.1", 1)
    world.run(12)
    world.end("2.1", 1)
    world.run(1)
    assert world.states() == ["stopped", "errored", "backoff", "ready"]
    assert world.now == 15.0
    world.history()
    return world
