"""Reports and /status documents, made up: complete ones, in which a test changes what it is about."""

from __future__ import annotations

import os
from typing import Any, cast

from multicore_server.ipc.names import StateName
from multicore_server.ipc.report import (
    EventReport,
    FleetStatus,
    ProcessReport,
    ProcessState,
    Report,
    ServerFacts,
    SlotReport,
    Status,
    WorkerStatus,
)


def process(
    instance: int = 0,
    generation: int = 1,
    state: ProcessState = "ready",
    row: int = 0,
    started: float = 1000.0,
) -> ProcessReport:
    """``row`` counts from the instance's first one."""
    ready_at = started + 0.5 if state == "ready" else None
    return {
        "generation": generation, "pid": 4000 + instance * 10 + generation, "row": instance * 4 + row,
        "state": state, "started": started, "ready_at": ready_at,
    }  # fmt: skip


def slot(
    instance: int = 0, state: StateName = "ready", processes: list[ProcessReport] | None = None
) -> SlotReport:
    return {
        "instance": instance, "state": state, "since": 1000.5, "unstable": 0, "next_restart": None,
        "wanted": None, "restarts": {"exit": 1},
        "processes": [process(instance)] if processes is None else processes,
    }  # fmt: skip


def event(text: str, at: float = 1000.0, **changes: Any) -> EventReport:
    made = {
        "id": 1, "at": at, "kind": "ready", "level": "info", "text": text,
        "instance": 0, "generation": 1, "pid": 4001, "reason": None, "in_hand": "", "public": text, **changes,
    }  # fmt: skip
    return cast("EventReport", made)


def _facts() -> ServerFacts:
    return {
        "version": "0.1.0", "name": "app:app", "addresses": ["http://127.0.0.1:8000"],
        "logs": ["/var/log/app.log"],
        "timeout": 30.0, "graceful_timeout": 30.0, "settings": {"workers": "2"}, "events": [event("ready")],
    }  # fmt: skip


def _fleet(workers: int) -> FleetStatus:
    return {
        "configured": workers, "capacity": 64, "stopping": False, "reloading": False,
        "restarts": {"exit": 2}, "reloads": {"ok": 0, "rolled_back": 0, "failed": 0},
    }  # fmt: skip


def report(**changes: Any) -> Report:
    """What an arbiter with two workers publishes."""
    arbiter = {"pid": os.getpid(), "started": 990.0, "gunicorn": "27", "uvicorn": "0.5", "python": "3"}
    slots = [slot(0), slot(1)]
    made = {
        **_facts(), **_fleet(2), "arbiter": arbiter, "worker_memory_limit": None, "slots": slots, **changes
    }  # fmt: skip
    return cast("Report", made)


def worker(
    instance: int, *processes: ProcessReport, state: StateName = "ready", **changes: Any
) -> WorkerStatus:
    """An instance as /status shows it."""
    made = {
        "instance": instance, "generation": 1, "pid": 4711 + instance, "state": state, "since": 1000.5,
        "started": 1000.0, "uptime": 125.0, "restarts": {"exit": 2, "reload": 1}, "unstable": 0,
        "next_restart": None, "wanted": None, "cpu_seconds": 1.5, "connections_accepted": 30,
        "requests": {"in_progress": 1, "total": 100, "durations": {}, "queue": {}, "codes": {}},
        "memory": {"resident": 90 * 2**20, "unique": 60 * 2**20, "limit": 100 * 2**20},
        "connections": 12, "in_hand": 3, "websockets": 0, "loop_lag": 0.0021,
        "blocked": 0.0, "inline": False,
        "processes": list(processes), "running": None, **changes,
    }  # fmt: skip
    return cast("WorkerStatus", made)


def status(*workers: WorkerStatus, **changes: Any) -> Status:
    """The /status of a server with these instances."""
    arbiter = {
        "pid": 4000,
        "started": 990.0,
        "gunicorn": "27",
        "uvicorn": "0.5",
        "python": "3",
        "uptime": 7300.0,
    }
    made = {
        **_facts(), **_fleet(len(workers)), "time": 1010.0, "host": "web-1", "arbiter": arbiter,
        "monitor": {"pid": 5, "started": 995.0}, "ready": sum(it["state"] == "ready" for it in workers),
        "workers": list(workers), **changes,
    }  # fmt: skip
    return cast("Status", made)
