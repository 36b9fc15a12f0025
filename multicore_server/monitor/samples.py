"""Keeps the figures of the last ten minutes, so that a page that opens now shows what came before.

Pure, except for reading the shared memory. Each sample is written once, when it is taken, so a reader costs
little more than the bytes. Times are of CLOCK_MONOTONIC, so a change of the clock moves nothing. A reader
gets the current time on both clocks, and can calculate dates.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest
from typing import NamedTuple, TypeAlias

from multicore_server.ipc.identity import identity
from multicore_server.ipc.report import EventReport, Report, SlotReport, serving
from multicore_server.ipc.scoreboard import (
    BUCKETS,
    CODES,
    METHODS,
    MOST,
    ROWS_PER_SLOT,
    Head,
    Item,
    Row,
    Scoreboard,
    requests_in_progress,
    whole,
)
from multicore_server.metrics.quantile import quantile as histogram_quantile

EVERY = 2.0  # seconds between two samples
KEPT = 300  # samples: ten minutes
WINDOW = 3  # intervals that CPU and latencies are of: CPU seconds are counted each second, or less often
MOST_MARKS = 100
MOST_TEXT = 200  # characters of a mark

# What a sample has, in this order. Rates are per second, times seconds, memory bytes, CPU percent of one CPU.
# `cpu_by_worker` has those of the instances from 0 on.
COLUMNS = (
    "at", "requests", "5xx", "499", "p50", "p99", "queue_p50", "queue_p95", "cpu", "cpu_by_worker",
    "memory", "in_progress", "backlog", "ready",
)  # fmt: skip
_DIGITS = {
    "at": 2, "requests": 2, "5xx": 2, "499": 2, "p50": 5, "p99": 5, "queue_p50": 5, "queue_p95": 5, "cpu": 1,
}  # fmt: skip
Value: TypeAlias = "float | list[int] | None"
_ALL_CODES = range(len(METHODS) * len(CODES))
_REQUESTS = slice(Item.REQUESTS.value, Item.REQUESTS + len(_ALL_CODES))
_DURATIONS = slice(Item.DURATIONS.value, Item.DURATIONS + len(BUCKETS) + 1)
_QUEUE = slice(Item.QUEUE.value, Item.QUEUE + len(BUCKETS) + 1)


class Reading(NamedTuple):
    """Counters of all workers that there have been: they only grow."""

    at: float
    codes: dict[str, int]
    durations: list[int]  # requests by BUCKETS, each in one bucket alone
    queue: list[int]  # the same, by the time that they waited for the app
    cpu: list[float]  # seconds, by instance


class Samples:
    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._readings: deque[Reading] = deque(maxlen=WINDOW + 1)
        self._samples: deque[tuple[float, str]] = deque(maxlen=KEPT)
        self._marks: deque[tuple[float, str]] = deque(maxlen=MOST_MARKS)  # with the time of their sample
        self._last_event = 0

    def take(self, report: Report, now: float, time: float) -> None:
        """Take a sample: ``now`` of CLOCK_MONOTONIC, ``time`` since the epoch."""
        self._mark(report["events"], now, time)
        rows = list(_rows(self._scoreboard))
        self._readings.append(_read(rows, now))
        values = [now, *self._rates(), *_present(report, self._scoreboard, rows)]
        written = [_written(*it) for it in zip(COLUMNS, values, strict=True)]
        self._samples.append((now, json.dumps(written, separators=(",", ":"))))

    def document(self, after: float, now: float, time: float) -> bytes:
        """What was noticed after this moment, as JSON."""
        if after > now:  # of a reader that knows this machine from before it was started again
            after = 0.0
        oldest = now - KEPT * EVERY
        head = json.dumps(
            {"every": EVERY, "kept": KEPT * EVERY, "now": now, "time": time, "columns": COLUMNS}
        )
        samples, marks = (
            ",".join(text for at, text in kept if at > max(after, oldest))
            for kept in (self._samples, self._marks)
        )
        return f'{head[:-1]}, "samples": [{samples}], "marks": [{marks}]}}'.encode("ascii")

    def _rates(self) -> list[Value]:
        """Requests by how they ended, of the last interval; what would flicker then, of the last WINDOW."""
        last = self._readings[-1]
        counts = _counted(self._readings[-2], last) if len(self._readings) > 1 else [None] * 3
        return [*counts, *_measured(self._readings[0], last)]

    def _mark(self, events: Sequence[EventReport], now: float, time: float) -> None:
        """Keep the reloads and the faults that are new. One that came between two samples is no older than
        that, whatever the clock on the wall says."""
        between = now - self._readings[-1].at if self._readings else math.inf
        for event in events:
            if event["id"] > self._last_event and _is_mark(event):
                at = now - min(max(0.0, time - event["at"]), between)
                self._marks.append((now, json.dumps([round(at, 2), *_described(event)])))
        self._last_event = max(self._last_event, *(event["id"] for event in events), 0)


def _counted(before: Reading, last: Reading) -> list[Value]:
    passed = last.at - before.at
    grown = {name: max(0, count - before.codes[name]) for name, count in last.codes.items()}
    counts = sum(grown.values()), grown["5xx"], grown["499"]
    return [it / passed if passed > 0 else None for it in counts]


def _measured(before: Reading, last: Reading) -> list[Value]:
    passed = last.at - before.at
    if passed <= 0:
        return [None] * 6
    durations, queue = _grown(before.durations, last.durations), _grown(before.queue, last.queue)
    # An instance that is new since then has used all of its time since then.
    used = [max(0.0, now - then) for now, then in zip_longest(last.cpu, before.cpu, fillvalue=0.0)]
    cpu = [seconds / passed * 100 for seconds in used]
    answered, waited = (0.5, 0.99), (0.5, 0.95)  # waited as in monit
    quantiles = [*(quantile(it, durations) for it in answered), *(quantile(it, queue) for it in waited)]
    return [*quantiles, sum(cpu), [*map(round, cpu)]]


def _grown(before: Sequence[int], last: Sequence[int]) -> list[int]:
    return [max(0, count - old) for count, old in zip(last, before, strict=True)]


def quantile(share: float, counts: Sequence[int]) -> float | None:
    """The seconds that this share of the requests did not exceed; None if there were none. ``counts`` are by
    BUCKETS, each in one bucket alone."""
    return histogram_quantile(share, [*zip((*BUCKETS, math.inf), accumulate(counts), strict=True)])


def _rows(scoreboard: Scoreboard) -> Iterable[Row]:
    return map(scoreboard.row, range(scoreboard.used_slots * ROWS_PER_SLOT))


def _read(rows: Sequence[Row], now: float) -> Reading:
    requests = _sums(rows, _REQUESTS)
    codes = {name: sum(requests[at :: len(CODES)]) for at, name in enumerate(CODES)}
    instances = range(0, len(rows), ROWS_PER_SLOT)
    cpu = [_cpu(rows[first : first + ROWS_PER_SLOT]) for first in instances]
    return Reading(now, codes, _sums(rows, _DURATIONS), _sums(rows, _QUEUE), cpu)


def _cpu(rows: Sequence[Row]) -> float:
    seconds = sum(row[Item.CPU_SECONDS] for row in rows)
    return seconds if 0 <= seconds < MOST else 0.0


def _sums(rows: Sequence[Row], cells: slice) -> list[int]:
    summed = map(sum, zip(*(row[cells] for row in rows), strict=True)) if rows else ()
    return [*map(whole, summed)] or [0] * (cells.stop - cells.start)


def _present(report: Report, scoreboard: Scoreboard, rows: Sequence[Row]) -> list[Value]:
    is_unique = report["settings"].get("memory_metric") == "uss"
    memory = sum(
        _memory(slot, scoreboard, is_unique, report["worker_memory_limit"]) for slot in report["slots"]
    )
    in_progress = whole(sum(map(requests_in_progress, rows)))
    ready = sum(slot["state"] == "ready" for slot in report["slots"])
    return [memory or None, in_progress, whole(scoreboard.head[Head.LISTEN_BACKLOG]), ready]


def _memory(slot: SlotReport, scoreboard: Scoreboard, is_unique: bool, limit: int | None) -> int:
    """What its limit is compared with: unique memory is measured only where there is one."""
    process = serving(slot["processes"])
    if process is None:
        return 0
    row = scoreboard.row(process["row"])
    unique = whole(row[Item.UNIQUE_MEMORY]) if is_unique and (row[Item.MEMORY_LIMIT] or limit) else 0
    return unique or whole(row[Item.RESIDENT_MEMORY])


def _written(column: str, value: Value) -> Value:
    return value if value is None or isinstance(value, list) else round(value, _DIGITS.get(column))


def _is_mark(event: EventReport) -> bool:
    return event["kind"] == "reload" or event["level"] in ("error", "critical")


def _described(event: EventReport) -> list[str]:
    """Its kind, its level, and who it is about with what happened, as everybody may know it."""
    who = identity(event["instance"], event["generation"], event["pid"])
    return [event["kind"], event["level"], f"{who} {event['public']}".strip()[:MOST_TEXT]]
