"""Slots and their processes: the data on which the fleet decides.

Pure. A slot is a place in the fleet with an instance number. Its processes follow each other, one generation
after the other. Up to four of them are alive at a time (the one that serves, its replacement, draining ones).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import count, islice

from multicore_server.fleet.events import SignalName
from multicore_server.fleet.policy import History
from multicore_server.ipc.names import Reason
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT


class State(str, Enum):
    """The first three are a process's, the last three those of a slot that has none starting or ready."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    STOPPED = "stopped"
    ERRORED = "errored"

    def __str__(self) -> str:
        return self.value


PEACE = 3.0  # seconds that a worker that drains has, before it ends early for the sake of the next one
RESTS = (State.BACKOFF, State.STOPPED, State.ERRORED)
# What a process may become. It only moves onward, and from every state it may end at any moment.
MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.READY, State.DRAINING}),
    State.READY: frozenset({State.DRAINING}),
    State.DRAINING: frozenset(),
}
# What a slot may become from one tick to the next, and by what. None: it is not there. A slot is what its
# process is that serves or, failing that, starts; without one, it rests, or its last processes drain.
SLOT_MOVES: dict[State | None, dict[State | None, str]] = {
    None: {State.STARTING: "server start, scale up"},
    State.STARTING: {
        State.READY: "ready",
        State.DRAINING: "ordered to stop",
        State.BACKOFF: "boot failed",
        State.STOPPED: "boot failed, autorestart or stop_exit_codes",
        State.ERRORED: "boot failed, max_restarts",
        None: "scale down, exit",
    },
    State.READY: {
        State.STARTING: "exit, restart at once",
        State.DRAINING: "ordered to stop",
        State.BACKOFF: "exit, restart after a delay",
        State.STOPPED: "exit, autorestart or stop_exit_codes",
        State.ERRORED: "exit, max_restarts",
        None: "scale down, exit",
    },
    State.DRAINING: {
        State.STARTING: "room for the next generation",
        None: "the last process has exited",
    },
    State.BACKOFF: {State.STARTING: "delay over, HUP, restart, reset", None: "scale down"},
    State.STOPPED: {State.STARTING: "HUP, restart", None: "scale down"},
    State.ERRORED: {State.STARTING: "HUP, restart, reset", None: "scale down"},
}


@dataclass(slots=True)
class Process:
    """One worker process. Times are seconds of the arbiter's monotonic clock."""

    instance: int
    generation: int
    row: int
    started: float
    version: int = 0  # of the configuration that it runs
    pid: int = 0  # 0 until the fork has been reported
    state: State = State.STARTING
    since: float = 0.0
    ready_at: float | None = None
    expires: float | None = None  # when max_lifetime is over
    deadline: float | None = None  # when the next harsher signal is due
    ending: Reason | None = None  # why we end it; None while we do not
    aborted: bool = False  # SIGABRT was sent
    killed: bool = False  # SIGKILL was sent
    quit: bool = False  # SIGQUIT was sent
    signals: list[SignalName] = field(default_factory=list)  # to send at the next tick, once it has a pid
    settled: bool = False  # its stable time has cleared the slot's history, or clears it no more
    kept: bool = False  # its replacement was given up: it goes on for good

    def move(self, state: State, now: float) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"a {self.state} process cannot become {state}")
        self.state = state
        self.since = now

    @property
    def ends_early(self) -> bool:
        """Whether it was told to leave what it has in progress."""
        return self.quit or self.aborted or self.killed

    def uptime(self, now: float) -> float | None:
        """Seconds since it became ready, None if it never did."""
        return None if self.ready_at is None else now - self.ready_at


@dataclass(slots=True)
class Slot:
    instance: int
    generation: int = 0
    processes: list[Process] = field(default_factory=list)
    history: History = field(default_factory=History)
    since: float = 0.0  # when it came to rest
    rest: State | None = None  # backoff, stopped or errored; None while a process is starting or ready
    not_before: float | None = None  # when the next start is due; in backoff, None: not yet known
    wanted: Reason | None = None  # a planned replacement is wanted, for this reason
    queued_at: float = 0.0  # since when its replacement waits for its turn; a failed attempt counts anew
    retired: bool = False  # scaled away; forgotten when its last process has ended
    endings: Counter[Reason] = field(default_factory=Counter)

    def find(self, pid: int) -> Process | None:
        return next((process for process in self.processes if process.pid == pid), None)

    def _in(self, state: State) -> Process | None:
        return next((process for process in self.processes if process.state is state), None)

    @property
    def serving(self) -> Process | None:
        return self._in(State.READY)

    @property
    def starting(self) -> Process | None:
        return self._in(State.STARTING)

    @property
    def draining(self) -> list[Process]:
        """Its old workers, the oldest first."""
        return [process for process in self.processes if process.state is State.DRAINING]

    @property
    def replacing(self) -> bool:
        """Whether a replacement is starting beside a worker that serves."""
        return self.serving is not None and self.starting is not None

    @property
    def vacant(self) -> bool:
        """Whether no process of it serves or will."""
        return self.serving is None and self.starting is None

    @property
    def state(self) -> State:
        current = self.serving or self.starting
        if current is not None:
            return current.state
        return self.rest or State.DRAINING

    def free_row(self) -> int | None:
        """A scoreboard row that none of its living processes uses."""
        first = self.instance * ROWS_PER_SLOT
        used = {process.row for process in self.processes}
        return next((row for row in range(first, first + ROWS_PER_SLOT) if row not in used), None)

    def of_generation(self, generation: int) -> Process:
        return next(process for process in self.processes if process.generation == generation)

    def is_due(self, now: float) -> bool:
        """Whether the moment that it waits for has come."""
        return self.not_before is not None and self.not_before <= now

    def revive(self) -> None:
        """Start again at the next tick, with a clean history."""
        self.history = History()
        self.rest = self.not_before = None

    def hold(self, rest: State, not_before: float | None = None) -> None:
        """Let the slot rest: in backoff until ``not_before``, or stopped or errored until it is revived.

        Raises ValueError if ``rest`` is none of these, or a process of it serves or starts.
        """
        if not self.vacant or rest not in RESTS:
            raise ValueError(f"a {self.state} slot cannot rest as {rest}")
        self.rest = rest
        self.not_before = not_before

    def settle(self, now: float, stable: float) -> None:
        """A worker that has been ready for ``stable`` seconds clears the slot's history, once."""
        worker = self.serving
        if worker is not None and not worker.settled and (worker.uptime(now) or 0.0) >= stable:
            worker.settled = True
            self.history = History()

    def add_process(self, now: float, row: int, version: int) -> Process:
        """Add the slot's next generation, about to be forked."""
        self.generation += 1
        process = Process(self.instance, self.generation, row, now, version, since=now)
        self.processes.append(process)
        self.rest = self.not_before = None
        return process


class Slots(dict[int, Slot]):
    """The slots of a fleet by instance number; those that were scaled away until their last process ends."""

    def __init__(self) -> None:
        super().__init__()
        self._generations: dict[int, int] = {}  # the last ones of the slots that were forgotten

    def active(self) -> list[Slot]:
        """The slots that have not been scaled away, in order."""
        return [slot for _, slot in sorted(self.items()) if not slot.retired]

    def processes(self) -> Iterator[Process]:
        for slot in self.values():
            yield from slot.processes

    def find(self, pid: int) -> tuple[Slot, Process] | None:
        """The living worker with this pid."""
        return next(((slot, found) for slot in self.values() if (found := slot.find(pid))), None)

    def open(self, number: int) -> list[Slot]:
        """So many slots with the lowest free instance numbers, to be started at the next tick."""
        free = (instance for instance in count() if instance not in self or self[instance].retired)
        return [self._open(instance) for instance in islice(free, number)]

    def _open(self, instance: int) -> Slot:
        slot = self.setdefault(instance, Slot(instance, self._generations.get(instance, 0)))
        slot.retired = False
        slot.revive()
        return slot

    def forget_if_empty(self, slot: Slot) -> None:
        if slot.retired and not slot.processes:
            self._generations[slot.instance] = slot.generation
            del self[slot.instance]

    def deadlines(self) -> Iterator[float]:
        """Every moment at which something is due."""
        for slot in self.values():
            if slot.not_before is not None:
                yield slot.not_before
        for process in self.processes():
            if process.deadline is not None:
                yield process.deadline
            if process.state is State.DRAINING:
                yield process.since + PEACE
            if process.expires is not None and process.state is State.READY:
                yield process.expires
