"""Judges the health of a server: one level, and the reasons in words. Pure.

`monit`, `show` and `ps` use it. docs/monitoring.md has the rules, for other readers of /status.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from multicore_server.ipc.report import Status, WorkerStatus

MANY_ERRORS = (0.01, 0.05)  # shares of the responses that are 5xx, above which it is amber, red
LEAST_REQUESTS = 20  # between two readings: below, and with fewer errors, a share says nothing
LEAST_ERRORS = 3
BLOCKED = 1.0  # seconds that an event loop is blocked
TIMEOUT = 30.0  # seconds: of a server that has none, or does not say it


class Level(IntEnum):
    OK = 0
    AMBER = 1
    RED = 2


@dataclass(frozen=True)
class Answered:
    """The answers between two readings: all requests, those with a 5xx status, and those whose client left
    without its response."""

    seconds: float
    requests: float = 0
    errors: float = 0
    left: float = 0

    @property
    def share(self) -> float | None:
        """The share of requests with a 5xx status; None if there were no requests."""
        return self.errors / self.requests if self.requests else None


class Reason(NamedTuple):
    level: Level
    text: str


class Health(NamedTuple):
    """``reasons``: the worst first; none if all is well."""

    level: Level
    reasons: list[str]

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "ok"


Reasons: TypeAlias = Iterator[Reason]


def health(status: Status, answered: Answered | None = None) -> Health:
    """Judge a server. ``answered`` covers the time between two readings, a few seconds apart."""
    if status["stopping"]:
        return Health(Level.AMBER, ["stopping"])
    found = [*_states(status), *_standing_still(status), *_errors(answered)]
    found.sort(key=lambda it: -it.level)
    return Health(max((it.level for it in found), default=Level.OK), [it.text for it in found])


def _states(status: Status) -> Reasons:
    """Judge the states of the workers. Workers that the settings have stopped are not missing."""
    states = Counter(worker["state"] for worker in status["workers"])
    errored = [worker["instance"] for worker in status["workers"] if worker["state"] == "errored"]
    if not states["ready"]:
        yield Reason(Level.RED, "no worker is ready")
    if errored:
        yield Reason(Level.RED, f"{_instances(errored)} errored: exited too often, no longer restarted")
    missing = status["configured"] - states["ready"] - states["stopped"] - states["errored"]
    if states["ready"] and missing > 0:
        others = [f"{states[it]} {it}" for it in ("starting", "backoff", "draining") if states[it]]
        where = f" ({', '.join(others)})" if others else ""
        yield Reason(Level.AMBER, f"{missing} of {status['configured']} workers missing{where}")


def _instances(numbers: list[int]) -> str:
    return f"{'instance' if len(numbers) == 1 else 'instances'} {', '.join(map(str, numbers))}"


def _standing_still(status: Status) -> Reasons:
    for worker in status["workers"]:
        level = blocked(worker, status)
        if level:
            yield Reason(level, f"instance {worker['instance']} blocked for {worker['blocked']:.1f} s")


def blocked(worker: WorkerStatus, status: Status) -> Level:
    """Judge how bad it is that a worker's event loop is blocked now, if it is.

    If requests run in its thread, a long request is not a fault yet.
    """
    half = (status.get("timeout") or TIMEOUT) / 2  # servers of older versions do not say it
    seconds, inline = worker.get("blocked", 0.0), worker.get("inline", False)
    if seconds > half:
        return Level.AMBER if inline else Level.RED
    return Level.AMBER if seconds > BLOCKED and not inline else Level.OK


def _errors(answered: Answered | None) -> Reasons:
    if answered is None or answered.requests < LEAST_REQUESTS or answered.errors < LEAST_ERRORS:
        return
    share = answered.share or 0.0
    levels = [
        level for level, least in zip((Level.AMBER, Level.RED), MANY_ERRORS, strict=True) if share > least
    ]
    if levels:
        yield Reason(levels[-1], f"{share:.1%} of the responses are 5xx")


# --- the docs


def _rules() -> Iterator[tuple[str, str, str]]:
    amber, red = (f"{share:.0%}" for share in MANY_ERRORS)
    yield "no worker is ready", "", "always"
    yield "workers are `errored`", "", "always"
    yield "fewer workers are ready than configured; `stopped` ones do not count", "always", ""
    yield "the server is stopping", "always", ""
    yield "a worker is blocked", f"for more than {BLOCKED:g} s", "for more than half of `timeout`"
    yield "the same, if requests run in the event loop's thread", "for more than half of `timeout`", ""
    yield (
        f"5xx responses, if there are at least {LEAST_ERRORS} of them and {LEAST_REQUESTS} requests",
        f"more than {amber}",
        f"more than {red}",
    )


def reference() -> str:
    """Return the rules in Markdown, for the docs."""
    rows = [f"| {what} | {amber} | {red} |" for what, amber, red in _rules()]
    return "\n".join(["| what | amber | red |", "| --- | --- | --- |", *rows])
