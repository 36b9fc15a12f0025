"""Moves the pidfile when a reload names another one."""

from __future__ import annotations

from typing import Any

from gunicorn.pidfile import Pidfile


def move(current: Pidfile | None, path: str | None, pid: int, log: Any) -> Pidfile | None:
    """The pidfile at ``path`` in place of the current one; None without one. If it cannot be made, a line
    says so and the current one stays."""
    if path == (current.fname if current else None):
        return current
    try:
        new = Pidfile(path) if path else None
        if new is not None:
            new.create(pid)
    except (OSError, RuntimeError) as exc:
        log.error("pidfile %s: %s; keeping %s", path, exc, current.fname if current else "none")
        return current
    if current is not None:
        current.unlink()
    return new
