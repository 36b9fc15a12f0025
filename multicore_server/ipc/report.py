"""The types of two documents: the report, which the arbiter publishes in shared memory, and /status.

Pure: types, and two questions that every reader asks. Both documents are JSON. Times are seconds since the
epoch, durations are seconds, amounts of memory are bytes. They have nothing from the environment or from
command lines.
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
    since: float  # when it entered this state
    unstable: int  # unstable exits since the last stable worker
    next_restart: float | None  # while in backoff
    wanted: Reason | None  # why its worker is to be replaced
    restarts: dict[Reason, int]
    processes: list[ProcessReport]  # oldest first


class EventReport(TypedDict):
    """``id`` counts the events of a server from 1. ``reason`` is a `Reason`, or the result of a reload.
    ``in_hand`` names requests; only the server's owner sees it. ``public`` is ``text`` as others see it."""

    id: int
    at: float
    kind: EventKind
    text: str
    public: str
    level: Level
    reason: str | None
    instance: int | None
    generation: int | None
    pid: int | None
    in_hand: str


class ArbiterReport(TypedDict):
    """The arbiter's process and its versions."""

    pid: int
    started: float
    python: str
    gunicorn: str
    uvicorn: str


class FleetStatus(TypedDict):
    """``configured`` is the wanted number of workers, ``capacity`` the number of slots."""

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
    timeout: float  # after which a worker that is blocked is aborted; 0: never
    graceful_timeout: float  # that a worker has to finish its requests when it exits
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
    """``durations``: number of requests that took at most the seconds in the key. ``queue``: number that
    waited at most that long until the app was called. ``codes``: number with a status of this class; ``499``:
    the client left without its response."""

    in_progress: int
    total: int
    durations: dict[str, int]
    queue: dict[str, int]
    codes: dict[str, int]


class MeasuredStatus(TypedDict):
    """Of the process that serves an instance. ``loop_lag`` and ``blocked`` keep growing while its event loop
    is blocked. If it is ``inline``, a request blocks it by design."""

    memory: MemoryStatus
    connections: int
    in_hand: int  # requests, and connections that wait for their first
    websockets: int
    loop_lag: float  # how late its last heartbeats were, or are now
    blocked: float  # for how long its event loop has been blocked by now; 0 if it is not
    inline: bool


class CountedStatus(TypedDict):
    """Counters of an instance, over all of its generations."""

    cpu_seconds: float
    connections_accepted: int
    requests: RequestsStatus


class RequestReport(TypedDict):
    """A request in progress: method, path and client, and for how many seconds it has run."""

    method: str
    path: str
    client: str
    seconds: float


class WorkerStatus(MeasuredStatus, CountedStatus):
    """An instance. Generation, pid, start and uptime are its worker's; None while it has no worker.

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
    """The answer to GET /status; ``host`` is this machine's name, ``ready`` the number of ready instances."""

    time: float
    host: str
    arbiter: ArbiterStatus
    monitor: MonitorStatus
    ready: int
    workers: list[WorkerStatus]


# --- reading the report ---


def serving(processes: Sequence[ProcessReport]) -> ProcessReport | None:
    """Return a slot's worker: its ready process, else its newest one; None if it has no process."""
    ready = [process for process in processes if process["state"] == "ready"]
    found = ready or processes
    return found[-1] if found else None


def unready(report: Report | None) -> str | None:
    """Return why the server does not accept requests, in one line; None if it does."""
    if report is None:
        return "the server is starting"
    if report["stopping"]:
        return "the server is stopping"
    if not any(slot["state"] == "ready" for slot in report["slots"]):
        return "no worker is ready"
    return None


LONGEST_ACTION = 600.0  # seconds that an operator may wait for one


class ActionAnswer(TypedDict):
    """The answer of one worker to an action: ``value`` if it is ``ok``, otherwise ``error``."""

    instance: int
    ok: bool
    value: object
    error: str
