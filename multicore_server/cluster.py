"""The interface of the server to the app: ``from multicore_server import cluster``.

Outside of a worker (plain uvicorn, a test, a REPL) the app is the only instance, number 0, and never drains.
So an app that uses this runs anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = [
    "draining", "generation", "instance", "instances", "is_worker", "on_drain", "on_shutdown", "ready",
    "wait_draining",
]  # fmt: skip

instance: int = 0
"""The worker's instance number: lowest free one from 0. A replacement keeps it. PM2: NODE_APP_INSTANCE."""

instances: int = 1
"""How many workers were to run when this worker was started. PM2: ``instances``."""

generation: int = 0
"""How many processes this instance has had, this one included; 0 outside of a worker."""

is_worker: bool = False
"""Whether this process is a worker of the server. Node: ``cluster.isWorker``."""

draining: bool = False
"""Whether this worker takes no new work and ends when its requests are answered. Ask for
``cluster.draining``: a name imported from here stays as it was."""

Callback = TypeVar("Callback", bound=Callable[[], Any])

_on_ready: Callable[[], None] | None = None
_on_drain: list[Callable[[], Any]] = []
_on_shutdown: list[Callable[[], Any]] = []
_waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()

logger = logging.getLogger("gunicorn.error")


def ready() -> None:
    """Tell the server that this worker is ready.

    With ``wait_ready`` a worker becomes ready only by this call. Any thread can call it, more than once. It
    is PM2's ``process.send('ready')``.
    """
    if _on_ready is not None:
        _on_ready()


async def wait_draining() -> None:
    """Return when this worker begins to drain: for responses and WebSockets that would not end by
    themselves. In any event loop, of any thread."""
    loop = asyncio.get_running_loop()
    waiter = (loop, loop.create_future())
    _waiting.add(waiter)
    try:
        if not draining:  # asked after the waiter is there: `begin_to_drain` does it the other way round
            await waiter[1]
    finally:
        _waiting.discard(waiter)


def on_drain(callback: Callback) -> Callback:
    """Call this when the worker begins to drain, in the event loop's thread; a coroutine function runs as a
    task, and the worker waits for it as for a request. A decorator. Node: ``worker.on('disconnect')``."""
    _on_drain.append(callback)
    return callback


def on_shutdown(callback: Callback) -> Callback:
    """Call this when the worker has drained, before the app's lifespan shutdown; a coroutine function is
    awaited, for what is left of ``graceful_timeout``. A decorator."""
    _on_shutdown.append(callback)
    return callback


# --- for the worker ---


def join(number: int, workers: int, its_generation: int, on_ready: Callable[[], None]) -> None:
    """This process is a worker now. Called once, after the fork."""
    global instance, instances, generation, is_worker, _on_ready
    instance, instances, generation, is_worker, _on_ready = number, workers, its_generation, True, on_ready


def begin_to_drain() -> None:
    """Idempotent. May run inside a signal handler."""
    global draining
    draining = True
    for loop, waiter in list(_waiting):
        with contextlib.suppress(RuntimeError):  # that loop is closed
            loop.call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def call_on_drain() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks; what is left to be awaited."""
    return _call("on_drain", _on_drain)


def call_on_shutdown() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks; what is left to be awaited."""
    return _call("on_shutdown", _on_shutdown)


def _call(kind: str, callbacks: list[Callable[[], Any]]) -> list[Coroutine[Any, Any, None]]:
    left: list[Coroutine[Any, Any, None]] = []
    for callback in list(callbacks):
        name = f"the {kind} callback {getattr(callback, '__qualname__', callback)}"
        try:
            answer = callback()
        except Exception:
            logger.exception("%s failed", name)
        else:
            if inspect.isawaitable(answer):
                left.append(_rescued(answer, name))
    return left


async def _rescued(answer: Awaitable[Any], name: str) -> None:
    try:
        await answer
    except Exception:
        logger.exception("%s failed", name)
