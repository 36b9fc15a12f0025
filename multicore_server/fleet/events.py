"""The fleet's input (observations), its orders (actions), and its news (events).

Pure data. The arbiter turns signals, messages and exits into observations, and carries out the actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from multicore_server.fleet.policy import Options
from multicore_server.ipc.identity import identity
from multicore_server.ipc.names import EventKind, Level, Reason

SignalName = Literal["TERM", "QUIT", "ABRT", "KILL"]


# --- observations ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forked:
    """The process that a `Fork` asked for exists."""

    instance: int
    generation: int
    pid: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """The process that a `Fork` asked for could not be made."""

    instance: int
    generation: int
    error: str


@dataclass(frozen=True, slots=True)
class BecameReady:
    """A worker serves."""

    pid: int


@dataclass(frozen=True, slots=True)
class AskedToRetire:
    """A worker wants to be replaced; ``draining`` if it has already stopped taking connections."""

    pid: int
    reason: Reason
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker is gone: by exit ``code``, or by ``signal`` (its name, ``oom`` if the kernel's OOM killer sent
    it). ``words`` is what it said of the cause; ``requests`` is how many it had in progress, ``in_hand``
    names some of them."""

    pid: int
    code: int | None = None
    signal: str | None = None
    oom: bool = False
    words: str = ""
    requests: int = 0
    in_hand: str = ""


@dataclass(frozen=True, slots=True)
class Hung:
    """A worker's heartbeat is older than gunicorn's ``timeout``."""

    pid: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OverMemory:
    """A worker uses more than ``max_memory_restart`` or, if ``hard``, than ``max_memory_kill``."""

    pid: int
    hard: bool
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class Reload:
    """HUP: load the configuration afresh, then replace every worker."""


@dataclass(frozen=True, slots=True)
class ReloadPrepared:
    """The new configuration is loaded and its addresses are bound."""

    options: Options
    workers: int
    tries: bool = False  # a worker is to show how many have room: answer with `Fit`


@dataclass(frozen=True, slots=True)
class ReloadFailed:
    """The new configuration cannot be used."""

    error: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The new configuration is in force."""


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The new configuration was tried and could not be put in force; the old one is."""

    error: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The arbiter itself stood still for so long: every running deadline gets as much more time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Restart:
    """Replace these instances (None: all) one after the other; revives stopped and errored ones."""

    reason: Reason = "manual"
    instances: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget the histories; errored slots start again."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Run this many workers from now on."""

    workers: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Memory has room for so many workers; an operator's word that came before this stands."""

    workers: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End everything: TERM is graceful, INT and QUIT are not."""

    graceful: bool


Observation: TypeAlias = (
    Forked | ForkFailed | BecameReady | AskedToRetire | Exited | Hung | OverMemory
    | Reload | ReloadPrepared | ReloadFailed | Committed | CommitFailed | Paused
    | Restart | Reset | Scale | Fit | Stop
)  # fmt: skip


# --- actions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fork:
    """Start a worker; answer with `Forked` or `ForkFailed`. ``candidate``: with the configuration of the
    reload in progress, not yet committed."""

    instance: int
    generation: int
    row: int
    candidate: bool


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal, by its name without ``SIG``."""

    pid: int
    name: SignalName


@dataclass(frozen=True, slots=True)
class PrepareReload:
    """Load the configuration and bind its addresses; answer with `ReloadPrepared` or `ReloadFailed`."""


@dataclass(frozen=True, slots=True)
class CommitReload:
    """The first replacement is ready: put the candidate configuration in force; answer with `Committed` or
    `CommitFailed`."""


@dataclass(frozen=True, slots=True)
class DropReload:
    """The candidate configuration is given up: close what was bound for it."""


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """No new connections: a shutdown has begun."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """The number of workers asked for has changed."""

    workers: int


@dataclass(frozen=True, slots=True)
class Halt:
    """Every worker is gone: end the arbiter with this exit status."""

    status: int
    reason: str | None


IN_LOG = "the log says why"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that operators want to know: who, what happened, what happens now. ``in_hand`` names
    requests: paths are the users' data. ``cause`` is what the app's code or the configuration says of it, a
    part of ``text``: there may be a secret in it. Both are for the log and the server's owner."""

    kind: EventKind
    text: str
    level: Level = "info"
    reason: str | None = None
    instance: int | None = None
    generation: int | None = None
    pid: int | None = None
    in_hand: str = ""
    cause: str = ""

    @property
    def public(self) -> str:
        """``text`` as everybody may read it."""
        return self.text.replace(self.cause, IN_LOG) if self.cause else self.text

    def __str__(self) -> str:
        who = identity(self.instance, self.generation, self.pid)
        text = f"{self.text}; in progress: {self.in_hand}" if self.in_hand else self.text
        return f"{who} {text}" if who else text


Action: TypeAlias = (
    Fork | Signal | PrepareReload | CommitReload | DropReload | CloseListeners | Scaled | Halt | Event
)
