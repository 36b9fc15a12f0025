"""Builds /status: the arbiter's report and, for each worker, its numbers from the scoreboard.

Pure, except for reading the shared memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import accumulate

from multicore_server.ipc.report import (
    CountedStatus,
    EventReport,
    MeasuredStatus,
    MonitorStatus,
    ProcessReport,
    Report,
    RequestReport,
    SlotReport,
    Status,
    WorkerStatus,
    serving,
)
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import (
    BUCKETS,
    CODES,
    METHODS,
    ROWS_PER_SLOT,
    Item,
    Row,
    Scoreboard,
    blocked,
    loop_lag,
    requests_in_progress,
    whole,
)

_REQUESTS = slice(Item.REQUESTS.value, Item.REQUESTS + len(METHODS) * len(CODES))
_BOUNDS = (*map(str, BUCKETS), "+Inf")  # as they are in Prometheus' text format
_NO_ROW = [0.0] * (max(Item) + 1)


def status(
    report: Report,
    scoreboard: Scoreboard,
    *,
    now: float,
    monitor: MonitorStatus,
    host: str,
    requests: RequestTable | None = None,
) -> Status:
    """The document, ready to become JSON. ``now`` is in seconds since the epoch. ``requests`` is given where
    the server's owner asks, who may know what users ask for."""
    arbiter = report["arbiter"]
    return {
        "time": now,
        "version": report["version"],
        "name": report["name"],
        "host": host,
        "addresses": report["addresses"],
        "logs": report["logs"],
        "timeout": report["timeout"],
        "graceful_timeout": report["graceful_timeout"],
        "configured": report["configured"],
        "capacity": report["capacity"],
        "stopping": report["stopping"],
        "reloading": report["reloading"],
        "restarts": report["restarts"],
        "reloads": report["reloads"],
        "settings": report["settings"],
        "events": report["events"] if requests else [*map(_for_everybody, report["events"])],
        "arbiter": {**arbiter, "uptime": max(0.0, now - arbiter["started"])},
        "monitor": monitor,
        "ready": sum(slot["state"] == "ready" for slot in report["slots"]),
        "workers": [_worker(slot, report, scoreboard, now, requests) for slot in report["slots"]],
    }


def _for_everybody(event: EventReport) -> EventReport:
    return {**event, "text": event["public"], "in_hand": ""}


def _running(slot: SlotReport, requests: RequestTable | None) -> list[RequestReport] | None:
    if requests is None:
        return None
    now = time.monotonic()
    found = [it for process in slot["processes"] for it in requests.of(process["row"], now)]
    return [
        {"method": it.method, "path": it.path, "client": it.client, "seconds": round(now - it.since, 3)}
        for it in sorted(found, key=lambda it: it.since)
    ]


def _worker(
    slot: SlotReport, report: Report, scoreboard: Scoreboard, now: float, requests: RequestTable | None
) -> WorkerStatus:
    process = serving(slot["processes"])
    return {
        "instance": slot["instance"],
        "generation": process and process["generation"],
        "pid": process and process["pid"],
        "state": slot["state"],
        "since": slot["since"],
        "started": process and process["started"],
        "uptime": _uptime(process, now),
        "restarts": slot["restarts"],
        "unstable": slot["unstable"],
        "next_restart": slot["next_restart"],
        "wanted": slot["wanted"],
        **_measured(process, scoreboard, report["worker_memory_limit"]),
        **_counted(slot["instance"], scoreboard),
        "processes": slot["processes"],
        "running": _running(slot, requests),
    }


def _uptime(process: ProcessReport | None, now: float) -> float | None:
    if process is None or process["ready_at"] is None:
        return None
    return max(0.0, now - process["ready_at"])


def _measured(process: ProcessReport | None, scoreboard: Scoreboard, limit: int | None) -> MeasuredStatus:
    row = _NO_ROW if process is None else scoreboard.row(process["row"])
    now = time.monotonic()
    beats = process is not None and process["state"] != "starting"
    return {
        "memory": {
            "resident": whole(row[Item.RESIDENT_MEMORY]) or None,
            "unique": whole(row[Item.UNIQUE_MEMORY]) or None,
            "limit": whole(row[Item.MEMORY_LIMIT]) or limit,
        },
        "connections": whole(row[Item.CONNECTIONS]),
        "in_hand": whole(row[Item.IN_HAND]),
        "websockets": whole(row[Item.WEBSOCKETS]),
        "loop_lag": _finite(loop_lag(row, now)) if beats else 0.0,
        "blocked": _finite(blocked(row, now)) if beats else 0.0,
        "inline": row[Item.INLINE] == 1,
    }


def _counted(instance: int, scoreboard: Scoreboard) -> CountedStatus:
    first = instance * ROWS_PER_SLOT
    rows = [scoreboard.row(number) for number in range(first, first + ROWS_PER_SLOT)]
    return {
        "cpu_seconds": _finite(sum(row[Item.CPU_SECONDS] for row in rows)),
        "connections_accepted": whole(sum(row[Item.ACCEPTED] for row in rows)),
        "requests": {
            "in_progress": whole(sum(map(requests_in_progress, rows))),
            "total": whole(sum(sum(row[_REQUESTS]) for row in rows)),
            "durations": _buckets(rows, Item.DURATIONS),
            "queue": _buckets(rows, Item.QUEUE),
            "codes": _codes(rows),
        },
    }


def _codes(rows: Iterable[Row]) -> dict[str, int]:
    """By class of status, over all methods."""
    cells = [sum(cells) for cells in zip(*(row[_REQUESTS] for row in rows), strict=True)]
    return {code: whole(sum(cells[place :: len(CODES)])) for place, code in enumerate(CODES)}


def _buckets(rows: Iterable[Row], first: int) -> dict[str, int]:
    cells = zip(*(row[first : first + len(_BOUNDS)] for row in rows), strict=True)
    return dict(zip(_BOUNDS, map(whole, accumulate(map(sum, cells))), strict=True))


def _finite(value: float) -> float:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else 0.0
