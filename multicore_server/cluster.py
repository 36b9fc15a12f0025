"""What an app may ask of the server that runs it: ``from multicore_server import cluster``.

Outside of a worker, `instance` is None and `ready` does nothing, so an app that uses them runs anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["instance", "ready"]

instance: int | None = None
"""This worker's number: from 0, the lowest free one, kept by its replacement (PM2's NODE_APP_INSTANCE)."""

_on_ready: Callable[[], None] | None = None


def ready() -> None:
    """Say that this worker may get requests; with ``wait_ready`` it is not ready before.

    PM2's ``process.send('ready')``. May be called from any thread and more than once.
    """
    if _on_ready is not None:
        _on_ready()


def join(number: int, on_ready: Callable[[], None]) -> None:
    """Tell this process which worker it is; the worker calls it once after the fork."""
    global instance, _on_ready
    instance = number
    _on_ready = on_ready
