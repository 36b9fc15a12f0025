"""The interface of the server to the app: ``from multicore_server import cluster``.

Outside of a worker, `instance` is None and `ready` does nothing. So an app that uses them runs anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["instance", "ready"]

instance: int | None = None
"""The worker's instance number: lowest free one from 0. A replacement keeps it. PM2: NODE_APP_INSTANCE."""

_on_ready: Callable[[], None] | None = None


def ready() -> None:
    """Tell the server that this worker is ready.

    With ``wait_ready`` a worker becomes ready only by this call. Any thread can call it, more than once. It
    is PM2's ``process.send('ready')``.
    """
    if _on_ready is not None:
        _on_ready()


def join(number: int, on_ready: Callable[[], None]) -> None:
    """Set the instance number of this process. The worker calls it once after the fork."""
    global instance, _on_ready
    instance = number
    _on_ready = on_ready
