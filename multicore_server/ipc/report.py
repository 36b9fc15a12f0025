"""The shapes of two documents: the report, which the arbiter publishes in shared memory, and /status.

Pure: types, and two questions that every reader asks. Both documents are JSON. Times are seconds since the
epoch, durations seconds, amounts of memory bytes. Nothing of the environment or of command lines is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from multicore_server.ipc.names import EventKind, Level, Reason, ReloadResult, StateName

ProcessState = Literal["starting", "ready", "draining"]


class ProcessReport(TypedDict):
    """A living process of a slot."""

    generation: int
    pid: int
    row: int  # of the scoreboard
    state: ProcessState
    started: float
    ready_at: float | None


class SlotReport(TypedDict):
    instance: int
    state: StateName
    since: float  # when it came to be in this state
    unstable: int  # exits, since the last stable worker
    next_restart: float | None  # while in backoff
    wanted: Reason | None  # why its worker is about to be replaced
    restarts: dict[Reason, int]
    processes: list[ProcessReport]  # oldest first


class EventReport(TypedDict):
    """``id`` counts the events of a server from 1 on. ``reason`` is a `Reason`, or the result of a reload.
    ``in_hand`` names requests: only the server's owner is shown it."""

    id: int
    at: float
    kind: EventKind
    text: str
    level: Level
    reason: str | None
    instance: int | None
    generation: int | None
    pid: int | None
    in_hand: str


class ArbiterReport(TypedDict):
    """The arbiter's process, and the versions that it runs."""

    pid: int
    started: float
    python: str
    gunicorn: str
    uvicorn: str


class FleetStatus(TypedDict):
    """``configured`` is how many workers are wanted, ``capacity`` how many slots there is room for."""

    configured: int
    capacity: int
    stopping: bool
    reloading: bool
    restarts: dict[Reason, int]
    reloads: dict[ReloadResult, int]


class FleetReport(FleetStatus):
    slots: list[SlotReport]  # by instance number


class ServerFacts(TypedDict):
    version: str
    name: str  # the app's
    addresses: list[str]  # where workers accept
    logs: list[str]  # the files that the processes write to
    timeout: float  # after which a worker that stands still is aborted; 0: never
    graceful_timeout: float  # that a worker has at its end
    settings: dict[str, str]  # in force, as a user would write them
    events: list[EventReport]  # the last ones, oldest first


class Report(ServerFacts, FleetReport):
    """What the arbiter publishes."""

    arbiter: ArbiterReport
    worker_memory_limit: int | None


# --- /status ---


class ArbiterStatus(ArbiterReport):
    uptime: float


class MonitorStatus(TypedDict):
    pid: int
    started: float


class MemoryStatus(TypedDict):
    resident: int | None
    unique: int | None  # None until it was measured
    limit: int | None


class RequestsStatus(TypedDict):
    """``durations``: how many requests took at most as many seconds as the key says; ``queue``: how many
    waited at most so long until the app was called. ``codes``: how many had a status of this class; ``499``:
    the client left without its response."""

    in_progress: int
    total: int
    durations: dict[str, int]
    queue: dict[str, int]
    codes: dict[str, int]


class MeasuredStatus(TypedDict):
    """Of the process that serves an instance. ``loop_lag`` and ``blocked`` go on growing while its event loop
    stands still; where it is ``inline``, a request does that by design."""

    memory: MemoryStatus
    connections: int
    in_hand: int  # requests, and connections that wait for their first
    websockets: int
    loop_lag: float  # how late its heartbeats were lately, or are now
    blocked: float  # for how long its event loop stands still by now; 0 where it does not
    inline: bool


class CountedStatus(TypedDict):
    """Numbers that only grow: of an instance, over all of its generations."""

    cpu_seconds: float
    connections_accepted: int
    requests: RequestsStatus


class RequestReport(TypedDict):
    """A request in progress: how it was asked for, and for how many seconds it has been in hand."""

    method: str
    path: str
    client: str
    seconds: float


class WorkerStatus(MeasuredStatus, CountedStatus):
    """An instance. Generation, pid, start and uptime are its worker's; None while it has none.

    ``running``: requests in progress, the oldest first; a worker notes a limited number of them. Paths are
    the users' data: over TCP it is None.
    """

    instance: int
    generation: int | None
    pid: int | None
    state: StateName
    since: float
    started: float | None
    uptime: float | None  # since it became ready
    restarts: dict[Reason, int]
    unstable: int
    next_restart: float | None
    wanted: Reason | None
    processes: list[ProcessReport]
    running: list[RequestReport] | None


class Status(ServerFacts, FleetStatus):
    """What GET /status answers; ``host`` is this machine's name, ``ready`` how many instances are."""

    time: float
    host: str
    arbiter: ArbiterStatus
    monitor: MonitorStatus
    ready: int
    workers: list[WorkerStatus]


# --- reading the report ---


def serving(processes: Sequence[ProcessReport]) -> ProcessReport | None:
    """A slot's worker: its process that is ready, else its newest one; None if it has none."""
    ready = [process for process in processes if process["state"] == "ready"]
    found = ready or processes
    return found[-1] if found else None


def unready(report: Report | None) -> str | None:
    """Why the server does not want requests, in one line; None if it does."""
    if report is None:
        return "the server is starting"
    if report["stopping"]:
        return "the server is stopping"
    if not any(slot["state"] == "ready" for slot in report["slots"]):
        return "no worker is ready"
    return None


LONGEST_ACTION = 600.0  # seconds that an operator may wait for one


class ActionAnswer(TypedDict):
    """What one worker says to an action: ``value`` where it is ``ok``, ``error`` where it is not."""

    instance: int
    ok: bool
    value: object
    error: str
