"""Collects the server's own metrics from the shared memory and the arbiter's report.

Pure, except for reading the shared memory and the machine's name. The label ``worker`` is the slot's instance
number. The state of living processes comes from their rows. Counters are summed over all rows that were ever
used, including rows of slots that were scaled away, so no sum can fall.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import TypeAlias

from multicore_server.ipc.report import ProcessReport, Report, serving
from multicore_server.ipc.scoreboard import (
    BUCKETS,
    CODES,
    ITEM_SIZE,
    METHODS,
    ROW_SIZE,
    ROWS_PER_SLOT,
    Head,
    Item,
    Scoreboard,
    loop_lag,
    requests_in_progress,
)
from multicore_server.metrics.definitions import LEFT_OUT, REASONS, RESULTS, STATES, TABLE
from multicore_server.metrics.family import Family, Sample, labels

Samples: TypeAlias = Iterable[Sample]
Values: TypeAlias = Mapping[str, float]
Pairs: TypeAlias = Iterable[tuple[str, float]]


def families(
    scoreboard: Scoreboard, report: Report | None, now: float, left_out: Values | None = None
) -> list[Family]:
    """Every metric of the table, in its order; one that has no value yet has no samples.

    ``report`` is None before the arbiter publishes its first one. ``now`` is a time of CLOCK_MONOTONIC, in
    seconds. ``left_out`` is what is missing of the app's own metrics: how much, by reason.
    """
    scrape = Scrape(scoreboard, report, now, left_out or {})
    return [metric.family(_SAMPLES[name](scrape)) for name, metric in TABLE.items()]


class Scrape:
    """A copy of all numbers at one moment, so that all metrics of a scrape agree with each other."""

    def __init__(self, scoreboard: Scoreboard, report: Report | None, now: float, left_out: Values) -> None:
        self.report = report
        self.now = now
        self.left_out = left_out
        self.head = scoreboard.head.tolist()
        self.slots = [] if report is None else report["slots"]
        # The scoreboard knows a slot once it serves. Its zeros are shown from its first report on.
        highest = max((slot["instance"] + 1 for slot in self.slots), default=0)
        self.used = max(scoreboard.used_slots, highest)
        rows = range(self.used * ROWS_PER_SLOT)
        self.rows: list[Sequence[float]] = [scoreboard.row(number).tolist() for number in rows]

    @cached_property
    def totals(self) -> list[float]:
        """Each item summed over all rows."""
        return [sum(items) for items in zip(*self.rows, strict=True)] or [0.0] * (ROW_SIZE // ITEM_SIZE)

    def living(self) -> Iterator[tuple[int, list[int]]]:
        """Each slot's instance number and the rows of its living processes."""
        for slot in self.slots:
            yield slot["instance"], [process["row"] for process in slot["processes"]]

    def workers(self) -> Iterator[tuple[int, ProcessReport]]:
        """Each slot's instance number and its worker, where it has one."""
        for slot in self.slots:
            if (process := serving(slot["processes"])) is not None:
                yield slot["instance"], process


@cache
def _worker(instance: int) -> str:
    return labels([("worker", str(instance))])


# --- the shapes that metrics have ---


def _in_progress(scrape: Scrape) -> Samples:
    return [
        Sample("", _worker(instance), max(0.0, sum(requests_in_progress(scrape.rows[row]) for row in rows)))
        for instance, rows in scrape.living()
    ]


def _gauge(item: Item) -> Callable[[Scrape], Samples]:
    """By worker: the sum over the slot's living processes."""
    return lambda scrape: [
        Sample("", _worker(instance), sum((scrape.rows[row][item] for row in rows), 0.0))
        for instance, rows in scrape.living()
    ]


def _measured(item: Item) -> Callable[[Scrape], Samples]:
    """By worker: a measured value of the slot's worker, no sample while it is 0."""
    return lambda scrape: [
        Sample("", _worker(instance), value)
        for instance, process in scrape.workers()
        if (value := scrape.rows[process["row"]][item])
    ]


def _counter(item: Item) -> Callable[[Scrape], Samples]:
    """By worker: the sum over the slot's rows."""
    return lambda scrape: [
        Sample("_total", _worker(slot), sum(row[item] for row in _rows_of(scrape, slot)))
        for slot in range(scrape.used)
    ]


def _rows_of(scrape: Scrape, slot: int) -> list[Sequence[float]]:
    return scrape.rows[slot * ROWS_PER_SLOT : (slot + 1) * ROWS_PER_SLOT]


def _total(item: Item) -> Callable[[Scrape], Samples]:
    return lambda scrape: [Sample("_total", "", scrape.totals[item])]


def _arbiter(item: Head, suffix: str = "") -> Callable[[Scrape], Samples]:
    """A value of the arbiter's process, no sample until it was measured."""
    return lambda scrape: [Sample(suffix, "", scrape.head[item])] if scrape.head[Head.START_TIME] else []


def _reported(number: Callable[[Report], float | None]) -> Callable[[Scrape], Samples]:
    """A number of the report, no sample while there is none."""

    def samples(scrape: Scrape) -> Samples:
        value = None if scrape.report is None else number(scrape.report)
        return [] if value is None else [Sample("", "", float(value))]

    return samples


def _counts(
    label: str, known: Iterable[str], counts: Callable[[Report], Pairs]
) -> Callable[[Scrape], Samples]:
    """Counts of the report by the values of a label."""
    return lambda scrape: _by(label, known, [] if scrape.report is None else counts(scrape.report), "_total")


def _by(label: str, known: Iterable[str], values: Pairs, suffix: str = "") -> Samples:
    """A sample for each value of a label; those that are known are shown from the start, as 0."""
    shown: dict[str, float] = dict.fromkeys(known, 0.0)
    shown.update(values)
    return [Sample(suffix, labels([(label, key)]), float(value)) for key, value in shown.items()]


# --- those with a shape of their own ---


def _workers(scrape: Scrape) -> Samples:
    return _by("state", STATES, Counter(slot["state"] for slot in scrape.slots).items())


def _start_times(scrape: Scrape) -> Samples:
    return [
        Sample("", _worker(instance), float(process["started"])) for instance, process in scrape.workers()
    ]


def _lags(scrape: Scrape) -> Samples:
    """A worker that boots has no event loop yet, and its row the heartbeat of the one before it."""
    for instance, process in scrape.workers():
        if process["state"] != "starting":
            yield Sample("", _worker(instance), loop_lag(scrape.rows[process["row"]], scrape.now))


_REQUESTS = [labels([("code", code), ("method", method)]) for method in METHODS for code in CODES]
_BOUNDS = [labels([("le", bound)]) for bound in (*map(str, BUCKETS), "+Inf")]


def _requests(scrape: Scrape) -> Samples:
    cells = scrape.totals[Item.REQUESTS : Item.REQUESTS + len(_REQUESTS)]
    return [Sample("_total", text, value) for text, value in zip(_REQUESTS, cells, strict=True)]


def _histogram(first: Item, total: Item) -> Callable[[Scrape], Samples]:
    """Of the cells of BUCKETS from ``first`` on."""

    def samples(scrape: Scrape) -> Samples:
        cells = list(accumulate(scrape.totals[first : first + len(_BOUNDS)]))
        buckets = [Sample("_bucket", text, value) for text, value in zip(_BOUNDS, cells, strict=True)]
        return [*buckets, Sample("_count", "", cells[-1]), Sample("_sum", "", scrape.totals[total])]

    return samples


def _build(scrape: Scrape) -> Samples:
    if scrape.report is None:
        return []
    arbiter = scrape.report["arbiter"]
    versions = [
        ("gunicorn", arbiter["gunicorn"]),
        ("python", arbiter["python"]),
        ("uvicorn", arbiter["uvicorn"]),
        ("version", scrape.report["version"]),
    ]
    return [Sample("", labels(versions), 1.0)]


def _server(scrape: Scrape) -> Samples:
    if scrape.report is None:
        return []
    return [Sample("", labels([("host", socket.gethostname()), ("name", scrape.report["name"])]), 1.0)]


_SAMPLES: Mapping[str, Callable[[Scrape], Samples]] = {
    "multicore_workers": _workers,
    "multicore_workers_configured": _reported(lambda report: report["configured"]),
    "multicore_worker_restarts_total": _counts("reason", REASONS, lambda report: report["restarts"].items()),
    "multicore_worker_start_time_seconds": _start_times,
    "multicore_worker_resident_memory_bytes": _measured(Item.RESIDENT_MEMORY),
    "multicore_worker_unique_memory_bytes": _measured(Item.UNIQUE_MEMORY),
    "multicore_worker_memory_limit_bytes": _reported(lambda report: report["worker_memory_limit"]),
    "multicore_worker_cpu_seconds_total": _counter(Item.CPU_SECONDS),
    "multicore_connections": _gauge(Item.CONNECTIONS),
    "multicore_connections_accepted_total": _counter(Item.ACCEPTED),
    "multicore_connections_handed_over_total": _total(Item.HANDED_OVER),
    "multicore_connections_migrated_total": _total(Item.MIGRATED),
    "multicore_requests_in_progress": _in_progress,
    "multicore_http_requests_total": _requests,
    "multicore_http_request_duration_seconds": _histogram(Item.DURATIONS, Item.DURATION_SUM),
    "multicore_http_request_queue_seconds": _histogram(Item.QUEUE, Item.QUEUE_SUM),
    "multicore_websockets": _gauge(Item.WEBSOCKETS),
    "multicore_event_loop_lag_seconds": _lags,
    "multicore_event_loop_blocked_total": _counter(Item.BLOCKED),
    "multicore_event_loop_blocked_seconds_total": _counter(Item.BLOCKED_SECONDS),
    "multicore_request_timeouts_total": _counter(Item.REQUEST_TIMEOUTS),
    "multicore_listen_backlog": lambda scrape: [Sample("", "", scrape.head[Head.LISTEN_BACKLOG])],
    "multicore_messages_sent_total": _counter(Item.MESSAGES_SENT),
    "multicore_messages_received_total": _counter(Item.MESSAGES_RECEIVED),
    "multicore_messages_not_delivered_total": _counter(Item.MESSAGES_LOST),
    "multicore_message_bytes_total": _total(Item.MESSAGE_BYTES),
    "multicore_message_handler_seconds_total": _counter(Item.HANDLER_SECONDS),
    "multicore_primary_changes_total": _total(Item.PRIMARY_CHANGES),
    "multicore_reloads_total": _counts("result", RESULTS, lambda report: report["reloads"].items()),
    "multicore_app_metrics_left_out": lambda scrape: _by("reason", LEFT_OUT, scrape.left_out.items()),
    "multicore_build_info": _build,
    "multicore_server_info": _server,
    "process_cpu_seconds_total": _arbiter(Head.CPU_SECONDS, "_total"),
    "process_resident_memory_bytes": _arbiter(Head.RESIDENT_MEMORY),
    "process_virtual_memory_bytes": _arbiter(Head.VIRTUAL_MEMORY),
    "process_start_time_seconds": _arbiter(Head.START_TIME),
    "process_open_fds": _arbiter(Head.OPEN_FDS),
    "process_max_fds": _arbiter(Head.MAX_FDS),
}
