"""The samples that the monitor keeps: rates of counters, marks of events, and their bounds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, Head, Item, Scoreboard
from multicore_server.monitor.samples import COLUMNS, EVERY, KEPT, MOST_MARKS, MOST_TEXT, Samples, quantile
from tests.support.reports import event, process, report, slot

BEGIN = 5000.0  # of CLOCK_MONOTONIC
EPOCH = 1_700_000_000.0
OK, FAILED, LEFT = (Item.REQUESTS + CODES.index(code) for code in ("2xx", "5xx", "499"))


class Monitor:
    """Takes samples, at the times that the test says."""

    def __init__(self) -> None:
        self.scoreboard = Scoreboard(64)
        self.scoreboard.assign(7)
        self.samples = Samples(self.scoreboard)
        self.now = BEGIN
        self.time = EPOCH

    def take(self, seconds: float = EVERY, **changes: Any) -> None:
        self.now += seconds
        self.time += seconds
        self.samples.take(report(**{"events": [], **changes}), self.now, self.time)

    def document(self, after: float = 0.0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.samples.document(after, self.now, self.time))
        return document

    def column(self, name: str) -> list[Any]:
        return [sample[COLUMNS.index(name)] for sample in self.document()["samples"]]

    def last(self, name: str) -> Any:
        return self.column(name)[-1]


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


def test_rates_are_of_the_last_interval_and_cpu_of_three(monitor: Monitor) -> None:
    row = monitor.scoreboard.row(4)
    for _ in range(4):
        row[OK] += 20
        row[FAILED] += 4
        row[LEFT] += 1
        row[Item.CPU_SECONDS] += 1.0
        monitor.take()
    assert monitor.column("requests") == [None, 12.5, 12.5, 12.5]
    assert (monitor.last("5xx"), monitor.last("499"), monitor.last("cpu")) == (2.0, 0.5, 50.0)
    for _ in range(3):
        monitor.take()
    assert monitor.column("requests")[4:] == [0.0, 0.0, 0.0]
    assert monitor.column("cpu")[4:] == [33.3, 16.7, 0.0]


def test_all_methods_count_and_all_rows(monitor: Monitor) -> None:
    monitor.take()
    for number in range(8):
        for method in range(len(METHODS)):
            monitor.scoreboard.row(number)[FAILED + method * len(CODES)] += 1
    monitor.take()
    assert monitor.last("5xx") == monitor.last("requests") == 8 * len(METHODS) / EVERY


def test_cpu_of_each_worker(monitor: Monitor) -> None:
    monitor.take()
    for number, seconds in ((0, 1.0), (1, 0.5), (4, 0.25), (8, 2.0)):
        monitor.scoreboard.assign(number)  # row 8: of an instance that is new
        monitor.scoreboard.row(number)[Item.CPU_SECONDS] += seconds
    monitor.take()
    assert monitor.column("cpu_by_worker") == [None, [75, 12, 100]]
    assert monitor.last("cpu") == 187.5


def test_latency_and_time_in_the_queue(monitor: Monitor) -> None:
    monitor.take()
    assert monitor.last("p50") is monitor.last("queue_p95") is None
    monitor.scoreboard.row(0)[Item.DURATIONS + 5] += 100  # 75 to 100 ms
    monitor.scoreboard.row(4)[Item.QUEUE + 1] += 100  # 5 to 10 ms
    monitor.take()
    assert (monitor.last("p50"), monitor.last("p99")) == (0.0875, 0.09975)
    assert (monitor.last("queue_p50"), monitor.last("queue_p95")) == (0.0075, 0.00975)
    for _ in range(3):
        monitor.take()
    assert monitor.last("p99") is monitor.last("queue_p50") is None


def test_a_pause_is_a_gap_and_no_peak(monitor: Monitor) -> None:
    monitor.take()
    monitor.scoreboard.row(0)[OK] += 6000
    monitor.take(60.0)
    assert monitor.column("at") == [BEGIN + EVERY, BEGIN + EVERY + 60]
    assert monitor.last("requests") == 100.0


def test_counters_that_fall_make_no_negative_rate(monitor: Monitor) -> None:
    row = monitor.scoreboard.row(0)
    row[OK] = row[Item.DURATIONS] = row[Item.CPU_SECONDS] = 1000
    monitor.take()
    row[OK] = row[Item.DURATIONS] = row[Item.CPU_SECONDS] = 10
    monitor.take()
    assert (monitor.last("requests"), monitor.last("cpu"), monitor.last("p50")) == (0, 0, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5.0, 1e300])
def test_whatever_a_worker_writes_there_is_json(monitor: Monitor, value: float) -> None:
    monitor.take()
    for item in Item:
        monitor.scoreboard.row(0)[item] = value
    for head in set(Head) - {Head.USED_SLOTS}:
        monitor.scoreboard.head[head] = value
    monitor.take()
    for sample in monitor.document()["samples"]:
        numbers = [*sample, *(sample[COLUMNS.index("cpu_by_worker")] or ())]
        assert all(it is None or it >= 0 for it in numbers if not isinstance(it, list))


def test_two_samples_of_one_moment(monitor: Monitor) -> None:
    monitor.take()
    monitor.take(0.0)
    assert monitor.last("requests") is monitor.last("cpu") is None


def test_what_is_now(monitor: Monitor) -> None:
    first, second = monitor.scoreboard.row(0), monitor.scoreboard.row(4)
    first[Item.RESIDENT_MEMORY], first[Item.UNIQUE_MEMORY] = 5e6, 2e6
    second[Item.RESIDENT_MEMORY] = 1e6
    first[Item.IN_HAND], first[Item.UNREAD] = 5, 2
    monitor.scoreboard.head[Head.LISTEN_BACKLOG] = 7
    monitor.take(slots=[slot(0), slot(1), slot(2, "backoff", [])])
    assert (monitor.last("memory"), monitor.last("in_progress")) == (6_000_000, 3)
    assert (monitor.last("backlog"), monitor.last("ready")) == (7, 2)
    monitor.take(settings={"memory_metric": "uss"})  # measured once, when there was a limit
    assert monitor.last("memory") == 6_000_000
    monitor.take(settings={"memory_metric": "uss"}, worker_memory_limit=9_000_000)
    assert monitor.last("memory") == 3_000_000


def test_memory_that_nobody_has_measured_is_not_known(monitor: Monitor) -> None:
    monitor.take(slots=[slot(0, processes=[process(0, state="starting")])])
    assert monitor.last("memory") is None


def test_an_instance_that_is_scaled_away_takes_no_requests_with_it(monitor: Monitor) -> None:
    monitor.scoreboard.row(4)[OK] = 500
    monitor.take()
    monitor.take(slots=[slot(0)])
    monitor.take()
    assert monitor.column("requests") == [None, 0.0, 0.0]


def test_there_are_so_many_and_no_more(monitor: Monitor) -> None:
    for _ in range(KEPT + 50):
        monitor.take()
    assert len(monitor.column("at")) == KEPT
    monitor.now += KEPT * EVERY / 2  # the monitor was stopped
    assert len(monitor.column("at")) < KEPT / 2 + 1
    assert len(monitor.samples.document(0, monitor.now, monitor.time)) < 30_000


def test_what_came_after(monitor: Monitor) -> None:
    for _ in range(5):
        monitor.take()
    third = monitor.column("at")[2]
    assert [it[0] for it in monitor.document(third)["samples"]] == [third + EVERY, third + 2 * EVERY]
    assert monitor.document(monitor.now)["samples"] == []
    # A reader of before the machine started again knows later times than there are.
    assert len(monitor.document(monitor.now + 1e6)["samples"]) == 5


def test_reloads_and_faults_are_marked(monitor: Monitor) -> None:
    crash = event("was killed", EPOCH - 100, id=2, kind="exited", level="error")
    old = [event("ready", EPOCH - 200, id=1), crash]
    monitor.take(events=old)
    reload = {"kind": "reload", "instance": None, "generation": None, "pid": None}
    done = event("reload done", monitor.time + 0.5, id=3, **reload)
    hung = event("hangs", monitor.time + 1.0, id=4, kind="timeout", level="critical")
    monitor.take(events=[*old, done, hung])
    monitor.take(events=[*old, done, hung])
    assert monitor.document()["marks"] == [
        [BEGIN - 100, "exited", "error", "instance=0 gen=1 pid=4001 was killed"],
        [BEGIN + EVERY + 0.5, "reload", "info", "reload done"],
        [BEGIN + EVERY + 1.0, "timeout", "critical", "instance=0 gen=1 pid=4001 hangs"],
    ]
    assert len(monitor.document(BEGIN + EVERY)["marks"]) == 2


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_is_set_moves_no_mark_by_more_than_an_interval(monitor: Monitor, jump: float) -> None:
    monitor.take()
    at = monitor.time + 1
    monitor.time += jump
    monitor.take(events=[event("was killed", at, id=1, kind="exited", level="error")])
    [[marked, *_]] = monitor.document()["marks"]
    assert monitor.now - EVERY <= marked <= monitor.now


def test_what_was_in_hand_is_in_no_mark(monitor: Monitor) -> None:
    faults = [
        event("x" * 1000, EPOCH, id=number, level="error", in_hand="GET /secret")
        for number in range(1, MOST_MARKS + 50)
    ]
    monitor.take(events=faults)
    marks = monitor.document()["marks"]
    assert len(marks) == MOST_MARKS
    assert all(len(text) <= MOST_TEXT and "secret" not in text for *_, text in marks)


def test_quantiles() -> None:
    counts = [0] * (len(BUCKETS) + 1)
    assert quantile(0.5, counts) is None
    counts[1] = 10  # between 5 and 10 ms
    assert quantile(0.5, counts) == pytest.approx(0.0075)
    counts[-1] = 90  # longer than the last bound
    assert quantile(0.99, counts) == BUCKETS[-1]


def test_the_docs_have_the_columns() -> None:
    text = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
    table = text.partition("| column | meaning |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`([\w]+)`", row.split("|")[1])]
    assert named == list(COLUMNS)
