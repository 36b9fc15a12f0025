"""What /status says: the arbiter's report and, for each worker, its numbers from the scoreboard.

Pure, but for reading the shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

from multicore_server.ipc.scoreboard import (
    BUCKETS,
    CODES,
    METHODS,
    ROWS_PER_SLOT,
    Item,
    Row,
    Scoreboard,
    requests_in_progress,
)

# Parts of the report that are shown as they are.
_AS_IT_IS = (
    "version", "name", "addresses", "configured", "capacity", "stopping", "reloading", "restarts", "reloads",
    "settings", "events",
)  # fmt: skip
_REQUESTS = slice(Item.REQUESTS.value, Item.REQUESTS + len(METHODS) * len(CODES))
_BOUNDS = (*map(str, BUCKETS), "+Inf")  # as they are in Prometheus' text format


def status(
    state: Mapping[str, Any], scoreboard: Scoreboard, *, now: float, monitor: Mapping[str, Any]
) -> dict[str, Any]:
    """The document, ready to become JSON.

    ``state`` is the parsed shared_report; ``now`` is in seconds since the epoch, as are all times in it;
    ``monitor`` is shown as it is. What only grows (``cpu_seconds``, ``requests.total``,
    ``requests.durations``, ``connections_accepted``) counts for an instance, over all of its generations;
    the rest is of the process that serves it. ``requests.durations`` has how many requests took at most as
    many seconds as its key says.
    """
    arbiter = state["arbiter"]
    return {
        "time": now,
        **{name: state.get(name) for name in _AS_IT_IS},
        "arbiter": {**arbiter, "uptime": _since(arbiter.get("started"), now)},
        "monitor": dict(monitor),
        "ready": sum(slot["state"] == "ready" for slot in state["slots"]),
        "workers": [_worker(slot, state, scoreboard, now) for slot in state["slots"]],
    }


def serving(slot: Mapping[str, Any]) -> dict[str, Any] | None:
    """The slot's worker: its process that is ready, else its newest one; None if there is none."""
    processes: list[dict[str, Any]] = slot["processes"]
    ready = [process for process in processes if process["state"] == "ready"]
    found = ready or processes
    return found[-1] if found else None


def _worker(
    slot: Mapping[str, Any], state: Mapping[str, Any], scoreboard: Scoreboard, now: float
) -> dict[str, Any]:
    process = serving(slot) or {}
    return {
        "instance": slot["instance"],
        "generation": process.get("generation"),
        "pid": process.get("pid"),
        "state": slot["state"],
        "since": slot["since"],
        "started": process.get("started"),
        "uptime": _since(process.get("ready_at"), now),  # seconds since it became ready
        "restarts": slot["restarts"],
        "unstable": slot["unstable"],
        "next_restart": slot["next_restart"],
        "wanted": slot["wanted"],  # why it is about to be replaced
        **_measured(process, scoreboard, state.get("worker_memory_limit")),
        **_counted(slot["instance"], scoreboard),
        "processes": slot["processes"],
    }


def _measured(process: Mapping[str, Any], scoreboard: Scoreboard, limit: Any) -> dict[str, Any]:
    row = scoreboard.row(process["row"]) if process else [0.0] * (max(Item) + 1)
    return {
        "memory": {
            "resident": int(row[Item.RESIDENT_MEMORY]) or None,
            "unique": int(row[Item.UNIQUE_MEMORY]) or None,  # None until it was measured
            "limit": int(row[Item.MEMORY_LIMIT]) or limit,
        },
        "connections": int(row[Item.CONNECTIONS]),
        "in_hand": int(row[Item.IN_HAND]),
        "websockets": int(row[Item.WEBSOCKETS]),
        "loop_lag": row[Item.LOOP_LAG],
    }


def _counted(instance: int, scoreboard: Scoreboard) -> dict[str, Any]:
    first = instance * ROWS_PER_SLOT
    rows = [scoreboard.row(number) for number in range(first, first + ROWS_PER_SLOT)]
    in_progress = max(0.0, sum(map(requests_in_progress, rows)))
    total = sum(sum(row[_REQUESTS]) for row in rows)
    return {
        "cpu_seconds": sum(row[Item.CPU_SECONDS] for row in rows),
        "connections_accepted": int(sum(row[Item.ACCEPTED] for row in rows)),
        "requests": {"in_progress": int(in_progress), "total": int(total), "durations": _durations(rows)},
    }


def _durations(rows: Iterable[Row]) -> dict[str, int]:
    cells = zip(*(row[Item.DURATIONS : Item.DURATIONS + len(_BOUNDS)] for row in rows), strict=True)
    return dict(zip(_BOUNDS, map(int, accumulate(map(sum, cells))), strict=True))


def _since(start: float | None, now: float) -> float | None:
    return None if start is None else max(0.0, now - start)
