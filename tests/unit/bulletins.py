"""Bulletins made by hand, as the arbiter publishes them, for the tests of those who read them."""

from __future__ import annotations

from typing import Any

from multicore_server.ipc.scoreboard import CODES, METHODS, Item


def process(row: int, state: str = "ready", started: float = 0.0) -> dict[str, Any]:
    return {"generation": 1, "pid": 4711, "row": row, "state": state, "started": started, "ready_at": None}


def slot(instance: int, state: str, *processes: dict[str, Any]) -> dict[str, Any]:
    return {"instance": instance, "state": state, "processes": list(processes)}


def shared_report(*slots: dict[str, Any], **others: Any) -> dict[str, Any]:
    arbiter = {"pid": 1, "started": 0.0, "gunicorn": "27.0.1", "uvicorn": "0.54.0", "python": "3.11.2"}
    return {"version": "0.1.0", "arbiter": arbiter, "configured": 2, "worker_memory_limit": None,
            "restarts": {}, "reloads": {}, "slots": list(slots), **others}  # fmt: skip


def cell(method: str, code: str) -> int:
    return Item.REQUESTS + METHODS.index(method) * len(CODES) + CODES.index(code)
