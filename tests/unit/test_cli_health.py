"""How a server is: the level, and the reasons in words."""

from __future__ import annotations

from typing import Any

import pytest

from multicore_server.cli.health import Answered, Health, Level, blocked, health
from multicore_server.ipc.report import Status
from tests.support.reports import status, worker

OK, AMBER, RED = Level.OK, Level.AMBER, Level.RED


def of(*states: Any, **changes: Any) -> Status:
    return status(*(worker(number, state=state) for number, state in enumerate(states)), **changes)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (of("ready", "ready"), Health(OK, [])),
        (of("ready", "stopped"), Health(OK, [])),  # as its settings say
        (of("ready", "ready", configured=1), Health(OK, [])),  # scaled down, and not gone yet
        (of("ready", "starting", "backoff", "backoff"),
         Health(AMBER, ["3 of 4 workers missing (1 starting, 2 backoff)"])),
        (of("ready", configured=3), Health(AMBER, ["2 of 3 workers missing"])),
        (of("starting", "backoff"), Health(RED, ["no worker is ready"])),
        (of("ready", "errored"), Health(RED, ["instance 1 errored: exited too often, no longer restarted"])),
        (of("errored", "ready", "errored", "backoff"), Health(RED, [
            "instances 0, 2 errored: exited too often, no longer restarted",
            "1 of 4 workers missing (1 backoff)"])),
        (of("errored", "starting"), Health(RED, [
            "no worker is ready", "instance 0 errored: exited too often, no longer restarted"])),
        (of("draining", stopping=True), Health(AMBER, ["stopping"])),
    ],
)  # fmt: skip
def test_workers_that_are_missing(seen: Status, expected: Health) -> None:
    assert health(seen) == expected


@pytest.mark.parametrize(
    ("seconds", "timeout", "inline", "level"),
    [
        (0.0, 30.0, False, OK),
        (1.0, 30.0, False, OK),
        (1.1, 30.0, False, AMBER),
        (15.1, 30.0, False, RED),
        (1.1, 2.0, False, RED),
        (0.6, 1.0, False, RED),  # it is aborted before it is blocked for long
        (14.9, 30.0, True, OK),  # a request that takes its time
        (15.1, 30.0, True, AMBER),
        (14.9, 0.0, False, AMBER),
        (15.1, 0.0, False, RED),
    ],
)
def test_a_worker_that_is_blocked(seconds: float, timeout: float, inline: bool, level: Level) -> None:
    it = worker(1, blocked=seconds, inline=inline)
    seen = status(worker(0), it, timeout=timeout)
    assert blocked(it, seen) is level
    assert health(seen) == Health(level, [f"instance 1 blocked for {seconds:.1f} s"] if level else [])


@pytest.mark.parametrize(
    ("requests", "errors", "level", "text"),
    [
        (1000, 10, OK, ""),
        (1000, 11, AMBER, "1.1% of the responses are 5xx"),
        (1000, 50, AMBER, "5.0% of the responses are 5xx"),
        (1000, 51, RED, "5.1% of the responses are 5xx"),
        (20, 20, RED, "100.0% of the responses are 5xx"),
        (100, 2, OK, ""),  # two do not make a trend
        (3, 3, OK, ""),  # at night
        (0, 0, OK, ""),
    ],
)
def test_errors(requests: int, errors: int, level: Level, text: str) -> None:
    assert health(of("ready"), Answered(10.0, requests, errors)) == Health(level, [text] if text else [])


def test_the_worst_comes_first() -> None:
    seen = status(worker(0, blocked=2.0), worker(1, state="backoff"))
    found = health(seen, Answered(1.0, 100, 90))
    assert found.level is RED
    assert found.reasons == [
        "90.0% of the responses are 5xx",
        "1 of 2 workers missing (1 backoff)",
        "instance 0 blocked for 2.0 s",
    ]
    assert str(found) == "; ".join(found.reasons)
    assert str(health(of("ready"))) == "ok"


def test_a_server_of_an_older_version_is_read_all_the_same() -> None:
    seen: Any = of("ready")
    del seen["timeout"]
    for key in ("blocked", "inline"):
        del seen["workers"][0][key]
    assert health(seen) == Health(OK, [])
