"""What /status shows: the report, and for each worker the numbers of its rows."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from multicore_server.ipc.report import MonitorStatus, Report, serving, unready
from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, Head, Item, Scoreboard
from multicore_server.metrics.collection import families
from multicore_server.monitor.status import status
from tests.support.reports import process, report, slot
from tests.unit.rows import cell

MONITOR: MonitorStatus = {"pid": 5, "started": 995.0}


@pytest.fixture
def scoreboard() -> Scoreboard:
    return Scoreboard(64)


def shown(published: Report, scoreboard: Scoreboard) -> dict[str, Any]:
    """As it comes to a client."""
    found = status(published, scoreboard, now=1010.0, monitor=MONITOR, host="web-1")
    document: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    return document


def test_the_server(scoreboard: Scoreboard) -> None:
    found = shown(report(reloading=True), scoreboard)
    assert (found["name"], found["version"], found["reloading"]) == ("app:app", "0.1.0", True)
    assert found["arbiter"]["uptime"] == 20.0
    assert found["monitor"] == MONITOR
    assert found["host"] == "web-1"
    assert found["ready"] == 2
    assert found["settings"] == {"workers": "2"}
    assert found["restarts"] == {"exit": 2}


def test_a_worker(scoreboard: Scoreboard) -> None:
    row = scoreboard.row(4)
    row[Item.RESIDENT_MEMORY] = 3e7
    row[Item.MEMORY_LIMIT] = 5e7
    row[Item.CONNECTIONS] = 4
    row[Item.IN_HAND] = 2
    row[Item.WEBSOCKETS] = 1
    row[Item.LOOP_LAG] = 0.25
    worker = shown(report(), scoreboard)["workers"][1]
    assert (worker["instance"], worker["generation"], worker["pid"]) == (1, 1, 4011)
    assert (worker["state"], worker["since"], worker["uptime"]) == ("ready", 1000.5, 9.5)
    assert worker["memory"] == {"resident": 30_000_000, "unique": None, "limit": 50_000_000}
    assert (worker["connections"], worker["in_hand"], worker["websockets"]) == (4, 2, 1)
    assert worker["loop_lag"] == 0.25
    assert worker["restarts"] == {"exit": 1}


def test_what_grows_is_the_instances_over_all_its_rows(scoreboard: Scoreboard) -> None:
    for number in range(8):
        row = scoreboard.row(number)
        row[Item.CPU_SECONDS] = 1.5
        row[Item.ACCEPTED] = 10
        row[Item.REQUESTS] = 1
        row[Item.REQUESTS + len(METHODS) * len(CODES) - 1] = 2
        row[Item.DURATIONS] = 1000  # the next item is none of them
    first = shown(report(), scoreboard)["workers"][0]
    assert (first["cpu_seconds"], first["connections_accepted"]) == (6.0, 40)
    assert (first["requests"]["in_progress"], first["requests"]["total"]) == (0, 12)


def test_durations_are_cumulative_and_of_all_its_rows(scoreboard: Scoreboard) -> None:
    for number, place in ((0, 0), (1, 0), (3, 5), (0, len(BUCKETS)), (4, 1)):
        scoreboard.row(number)[Item.DURATIONS + place] += 1
    scoreboard.row(0)[Item.DURATION_SUM] = 1000.0  # the item behind them
    first, second = (worker["requests"]["durations"] for worker in shown(report(), scoreboard)["workers"])
    expected = dict.fromkeys(map(str, BUCKETS[:5]), 2) | dict.fromkeys(map(str, BUCKETS[5:]), 3)
    assert first == expected | {"+Inf": 4}
    assert (second["0.005"], second["0.01"], second["+Inf"]) == (0, 1, 1)


def test_time_in_the_queue_is_cumulative_and_of_all_its_rows(scoreboard: Scoreboard) -> None:
    for number, place, count in ((0, 0, 3), (1, 2, 4), (3, len(BUCKETS), 5), (4, 0, 6)):
        scoreboard.row(number)[Item.QUEUE + place] += count
    scoreboard.row(0)[Item.QUEUE_SUM] = 1000.0
    first, second = (worker["requests"]["queue"] for worker in shown(report(), scoreboard)["workers"])
    assert (first["0.005"], first["0.01"], first["0.025"], first["10.0"], first["+Inf"]) == (3, 3, 7, 7, 12)
    assert second["+Inf"] == 6


def test_requests_by_class_of_status_are_of_all_its_rows_and_methods(scoreboard: Scoreboard) -> None:
    for row, method, code, count in ((0, "GET", "2xx", 5), (1, "POST", "2xx", 2), (3, "GET", "5xx", 3)):
        scoreboard.row(row)[cell(method, code)] = count
    scoreboard.row(0)[cell("other", "499")] = 7
    scoreboard.row(4)[cell("GET", "4xx")] = 1
    first, second = (worker["requests"] for worker in shown(report(), scoreboard)["workers"])
    assert first["codes"] == {"1xx": 0, "2xx": 7, "3xx": 0, "4xx": 0, "5xx": 3, "499": 7}
    assert sum(first["codes"].values()) == first["total"]
    assert second["codes"]["4xx"] == 1


@pytest.mark.parametrize(
    ("due", "lag", "blocked"),
    [
        (0.9, 0.25, 0.0),  # it rests
        (-0.05, 0.25, 0.0),  # late, as it may be on a busy machine
        (-10.0, 10.0, 10.0),  # blocked right now: the last beat that is over says nothing of it
    ],
)
def test_a_worker_that_is_blocked_now_looks_it(
    scoreboard: Scoreboard, due: float, lag: float, blocked: float
) -> None:
    row = scoreboard.row(0)
    row[Item.LOOP_LAG], row[Item.BEAT_DUE], row[Item.INLINE] = 0.25, time.monotonic() + due, 1
    first, second = shown(report(), scoreboard)["workers"]
    assert first["loop_lag"] == pytest.approx(lag, abs=0.5)
    assert first["blocked"] == pytest.approx(blocked, abs=0.5)
    assert (first["inline"], second["inline"]) == (True, False)
    assert (second["loop_lag"], second["blocked"]) == (0.0, 0.0)  # its heart does not beat yet


def test_a_worker_that_boots_has_no_event_loop_to_be_blocked(scoreboard: Scoreboard) -> None:
    scoreboard.row(0)[Item.BEAT_DUE] = 1.0
    boots = slot(0, "starting", [process(0, state="starting")])
    worker = shown(report(slots=[boots]), scoreboard)["workers"][0]
    assert (worker["loop_lag"], worker["blocked"]) == (0.0, 0.0)


def test_during_a_replacement_the_ready_one_is_shown(scoreboard: Scoreboard) -> None:
    both = [process(0, 1), process(0, 2, "starting", row=1)]
    scoreboard.row(0)[Item.CONNECTIONS] = 7
    worker = shown(report(slots=[slot(0, processes=both)]), scoreboard)["workers"][0]
    assert (worker["generation"], worker["connections"]) == (1, 7)
    assert [it["generation"] for it in worker["processes"]] == [1, 2]
    both[0]["state"] = "draining"
    assert serving(both) == both[1]


def test_a_slot_without_a_process(scoreboard: Scoreboard) -> None:
    waiting = {**slot(0, "backoff", []), "next_restart": 1012.5, "unstable": 3}
    found = shown(report(slots=[waiting], worker_memory_limit=1000), scoreboard)
    worker = found["workers"][0]
    assert (worker["pid"], worker["generation"], worker["uptime"]) == (None, None, None)
    assert (worker["next_restart"], worker["unstable"]) == (1012.5, 3)
    assert worker["memory"] == {"resident": None, "unique": None, "limit": 1000}
    assert found["ready"] == 0


@pytest.mark.parametrize(
    ("published", "why"),
    [
        (None, "the server is starting"),
        (report(), None),
        (report(slots=[slot(0, "errored", []), slot(1)]), None),
        (report(stopping=True), "the server is stopping"),
        (report(slots=[slot(0, "draining"), slot(1, "starting")]), "no worker is ready"),
        (report(slots=[]), "no worker is ready"),
    ],
)
def test_readiness(published: Report | None, why: str | None) -> None:
    assert unready(published) == why


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_worker_that_writes_anything_into_the_scoreboard_breaks_no_document(
    scoreboard: Scoreboard, value: float
) -> None:
    for item in Item:
        scoreboard.row(0)[item] = value
    scoreboard.head[Head.USED_SLOTS] = value
    found = shown(report(), scoreboard)
    assert found["workers"][0]["memory"] == {"resident": None, "unique": None, "limit": None}
    assert [family.name for family in families(scoreboard, report(), 1000.0)]
    assert scoreboard.used_slots <= 64
    scoreboard.assign(4)  # the arbiter forks its next worker
