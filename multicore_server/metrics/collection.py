"""Collection: the server's own metrics as the shared memory and the arbiter's report have them now.

Pure, but for reading the shared memory. The label ``worker`` is the slot's instance number. What is a state
of living processes comes from the rows of these; what only grows is summed over all rows that were ever
used, also those of slots that were scaled away, so no sum can fall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import Any, TypeAlias

from multicore_server.ipc.heartbeat import BEAT
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
    requests_in_progress,
)
from multicore_server.metrics.definitions import LEFT_OUT, REASONS, RESULTS, STATES, TABLE
from multicore_server.metrics.family import Family, Sample, labels

Samples: TypeAlias = Iterable[Sample]
Values: TypeAlias = Mapping[str, float]


def families(
    scoreboard: Scoreboard, state: Mapping[str, Any], now: float, left_out: Values | None = None
) -> list[Family]:
    """Every metric of the table, in its order; one that has nothing to say yet has no samples.

    ``state`` is the parsed shared_report, empty before its first publish. ``now`` is of CLOCK_MONOTONIC, in
    seconds. ``left_out`` is what is missing of the app's own metrics: how much, by reason.
    """
    view = View(scoreboard, state, now, left_out or {})
    return [metric.family(_SAMPLES[name](view)) for name, metric in TABLE.items()]


class View:
    """One look at everything, so that all metrics of a scrape come from the same numbers."""

    def __init__(
        self, scoreboard: Scoreboard, state: Mapping[str, Any], now: float, left_out: Values
    ) -> None:
        self.state = state
        self.now = now
        self.left_out = left_out
        self.head = scoreboard.head.tolist()
        self.slots = sorted(state.get("slots", ()), key=lambda slot: slot["instance"])
        # A slot is published as used once it serves; its zeros are shown before.
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

    def workers(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each slot's instance number and its worker: the process that is ready, else the newest one."""
        for slot in self.slots:
            processes = slot["processes"]
            ready = [process for process in processes if process["state"] == "ready"]
            if processes:
                yield slot["instance"], (ready or processes)[-1]


@cache
def _worker(instance: int) -> str:
    return labels([("worker", str(instance))])


# --- the shapes that metrics have ---


def _in_progress(view: View) -> Samples:
    return [
        Sample("", _worker(instance), max(0.0, sum(requests_in_progress(view.rows[row]) for row in rows)))
        for instance, rows in view.living()
    ]


def _gauge(item: Item) -> Callable[[View], Samples]:
    """By worker: the sum over the slot's living processes."""
    return lambda view: [
        Sample("", _worker(instance), sum((view.rows[row][item] for row in rows), 0.0))
        for instance, rows in view.living()
    ]


def _measured(item: Item) -> Callable[[View], Samples]:
    """By worker: what was measured of the slot's worker, nothing while that is 0."""
    return lambda view: [
        Sample("", _worker(instance), value)
        for instance, process in view.workers()
        if (value := view.rows[process["row"]][item])
    ]


def _counter(item: Item) -> Callable[[View], Samples]:
    """By worker: the sum over the slot's rows."""
    return lambda view: [
        Sample("_total", _worker(slot), sum(row[item] for row in _rows_of(view, slot)))
        for slot in range(view.used)
    ]


def _rows_of(view: View, slot: int) -> list[Sequence[float]]:
    return view.rows[slot * ROWS_PER_SLOT : (slot + 1) * ROWS_PER_SLOT]


def _total(item: Item) -> Callable[[View], Samples]:
    return lambda view: [Sample("_total", "", view.totals[item])]


def _arbiter(item: Head, suffix: str = "") -> Callable[[View], Samples]:
    """Of the arbiter's process, nothing until it has looked at itself."""
    return lambda view: [Sample(suffix, "", view.head[item])] if view.head[Head.START_TIME] else []


def _known(key: str) -> Callable[[View], Samples]:
    """A number of the report, nothing while it has none."""
    return lambda view: [Sample("", "", float(value)) for value in [view.state.get(key)] if value is not None]


def _by(label: str, known: Iterable[str], values: Values, suffix: str = "") -> Samples:
    """A sample for each value of a label; those that are known are shown from the start, as 0."""
    shown: dict[str, float] = {**dict.fromkeys(known, 0), **values}
    return [Sample(suffix, labels([(label, key)]), float(value)) for key, value in shown.items()]


# --- those with a shape of their own ---


def _workers(view: View) -> Samples:
    return _by("state", STATES, Counter(slot["state"] for slot in view.slots))


def _start_times(view: View) -> Samples:
    return [Sample("", _worker(instance), float(process["started"])) for instance, process in view.workers()]


def _lags(view: View) -> Samples:
    """A worker that boots has no event loop yet, and its row the heartbeat of the one before it."""
    for instance, process in view.workers():
        if process["state"] != "starting":
            row = view.rows[process["row"]]
            overdue = view.now - row[Item.HEARTBEAT] - BEAT
            yield Sample("", _worker(instance), max(row[Item.LOOP_LAG], overdue))


_REQUESTS = [labels([("code", code), ("method", method)]) for method in METHODS for code in CODES]
_BOUNDS = [labels([("le", bound)]) for bound in (*map(str, BUCKETS), "+Inf")]


def _requests(view: View) -> Samples:
    cells = view.totals[Item.REQUESTS : Item.REQUESTS + len(_REQUESTS)]
    return [Sample("_total", text, value) for text, value in zip(_REQUESTS, cells, strict=True)]


def _durations(view: View) -> Samples:
    cells = list(accumulate(view.totals[Item.DURATIONS : Item.DURATIONS + len(_BOUNDS)]))
    buckets = [Sample("_bucket", text, value) for text, value in zip(_BOUNDS, cells, strict=True)]
    return [*buckets, Sample("_count", "", cells[-1]), Sample("_sum", "", view.totals[Item.DURATION_SUM])]


def _build(view: View) -> Samples:
    arbiter = view.state.get("arbiter")
    if arbiter is None:
        return []
    versions = {name: arbiter[name] for name in ("gunicorn", "python", "uvicorn")}
    return [Sample("", labels([*versions.items(), ("version", view.state["version"])]), 1.0)]


_SAMPLES: Mapping[str, Callable[[View], Samples]] = {
    "multicore_workers": _workers,
    "multicore_workers_configured": _known("configured"),
    "multicore_worker_restarts_total": lambda view: _by(
        "reason", REASONS, view.state.get("restarts", {}), "_total"
    ),
    "multicore_worker_start_time_seconds": _start_times,
    "multicore_worker_resident_memory_bytes": _measured(Item.RESIDENT_MEMORY),
    "multicore_worker_unique_memory_bytes": _measured(Item.UNIQUE_MEMORY),
    "multicore_worker_memory_limit_bytes": _known("worker_memory_limit"),
    "multicore_worker_cpu_seconds_total": _counter(Item.CPU_SECONDS),
    "multicore_connections": _gauge(Item.CONNECTIONS),
    "multicore_connections_accepted_total": _counter(Item.ACCEPTED),
    "multicore_connections_handed_over_total": _total(Item.HANDED_OVER),
    "multicore_connections_migrated_total": _total(Item.MIGRATED),
    "multicore_requests_in_progress": _in_progress,
    "multicore_http_requests_total": _requests,
    "multicore_http_request_duration_seconds": _durations,
    "multicore_websockets": _gauge(Item.WEBSOCKETS),
    "multicore_event_loop_lag_seconds": _lags,
    "multicore_listen_backlog": lambda view: [Sample("", "", view.head[Head.LISTEN_BACKLOG])],
    "multicore_reloads_total": lambda view: _by("result", RESULTS, view.state.get("reloads", {}), "_total"),
    "multicore_app_metrics_left_out": lambda view: _by("reason", LEFT_OUT, view.left_out),
    "multicore_build_info": _build,
    "process_cpu_seconds_total": _arbiter(Head.CPU_SECONDS, "_total"),
    "process_resident_memory_bytes": _arbiter(Head.RESIDENT_MEMORY),
    "process_virtual_memory_bytes": _arbiter(Head.VIRTUAL_MEMORY),
    "process_start_time_seconds": _arbiter(Head.START_TIME),
    "process_open_fds": _arbiter(Head.OPEN_FDS),
    "process_max_fds": _arbiter(Head.MAX_FDS),
}
