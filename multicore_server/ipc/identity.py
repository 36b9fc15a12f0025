"""Names a worker and a client in log lines, and a server to its operators.

Pure.
"""

from __future__ import annotations

from typing import Any


def identity(instance: int | None, generation: int | None, pid: int | None) -> str:
    """Return ``instance=2 gen=3 pid=4711``, without the parts that are None."""
    parts = (("instance", instance), ("gen", generation), ("pid", pid))
    return " ".join(f"{name}={value}" for name, value in parts if value is not None)


def server_name(name: str) -> str:
    """Return a server's name without the arguments of an app factory, which may be secret."""
    return name.partition("(")[0]


def refused(client: Any, status: int, why: str) -> str:
    """Return the line of the log for a request that the app does not get; ``client`` is an ASGI scope's."""
    host = client[0] if client else "a unix socket"
    return f"a request from {host} is refused with {status:d}: {why}"
