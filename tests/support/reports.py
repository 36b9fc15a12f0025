"""What an arbiter publishes, made up."""

from __future__ import annotations

import os
from typing import Any


def process(instance: int = 0, generation: int = 1, state: str = "ready", row: int = 0) -> dict[str, Any]:
    ready_at = 1000.5 if state == "ready" else None
    return {
        "generation": generation, "pid": 4000 + instance * 10 + generation, "row": instance * 4 + row,
        "state": state, "started": 1000.0, "ready_at": ready_at,
    }  # fmt: skip


def slot(instance: int = 0, state: str = "ready", processes: list[Any] | None = None) -> dict[str, Any]:
    return {
        "instance": instance, "state": state, "since": 1000.5, "unstable": 0, "next_restart": None,
        "wanted": None, "restarts": {"exit": 1},
        "processes": [process(instance)] if processes is None else processes,
    }  # fmt: skip


def event(text: str, at: float = 1000.0) -> dict[str, Any]:
    return {
        "at": at, "kind": "ready", "level": "info", "text": text,
        "instance": 0, "generation": 1, "pid": 4001, "reason": None,
    }  # fmt: skip


def shared_report(**changes: Any) -> dict[str, Any]:
    """What an arbiter with two workers publishes."""
    return {
        "version": "0.1.0", "name": "app:app",
        "arbiter": {"pid": os.getpid(), "started": 990.0, "gunicorn": "27", "uvicorn": "0.5", "python": "3"},
        "addresses": ["http://127.0.0.1:8000"], "configured": 2, "capacity": 64,
        "stopping": False, "reloading": False, "worker_memory_limit": None,
        "restarts": {"exit": 2}, "reloads": {"ok": 0, "rolled_back": 0, "failed": 0},
        "slots": [slot(0), slot(1)], "settings": {"workers": "2"}, "events": [event("ready")],
        **changes,
    }  # fmt: skip
