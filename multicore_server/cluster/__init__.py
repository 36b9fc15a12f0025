"""The interface of the server to the app: ``from multicore_server import cluster``.

Outside of a worker (plain uvicorn, a test, a REPL) the app is the only instance, number 0, primary, and never
drains.
So an app that uses this runs anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from multicore_server.cluster.once import Attempt, Log, OnceError, once, once_sync
from multicore_server.cluster.primary import Election, Jobs, Lock

__all__ = [
    "OnceError", "draining", "generation", "instance", "instances", "is_primary", "is_worker", "on_drain",
    "on_shutdown", "once", "once_sync", "ready", "run_on_primary", "start", "wait_draining",
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

is_primary: bool = True
"""Whether this worker is the one that runs what is to run once: at most one is. Ask for
``cluster.is_primary``, as for ``draining``. Node's ``cluster.isPrimary`` is the parent process."""

Callback = TypeVar("Callback", bound=Callable[[], Any])

_on_ready: Callable[[], None] | None = None
_on_drain: list[Callable[[], Any]] = []
_on_shutdown: list[Callable[[], Any]] = []
_jobs = Jobs()
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


def run_on_primary(function: Callback) -> Callback:
    """Run this in one worker alone, the primary one: a scheduler, a consumer of a queue. A decorator.

    A coroutine function runs as a task from the moment when the worker is ready and primary, and is cancelled
    when the worker drains; the next primary worker runs it then, not before it has ended here. What is no
    coroutine function gets a thread, and is to return soon after ``cluster.draining``. If it raises, it is
    logged, and starts again after a delay that grows from 0.1 to 15 s; if it returns, it is done.
    """
    _jobs.add(function)
    return function


def start() -> None:
    """Run what is registered by `run_on_primary` in the running event loop: for plain uvicorn, in the app's
    lifespan, and for tests. In a worker it does nothing: the server starts it. Raises RuntimeError where no
    loop runs."""
    if not is_worker:
        _jobs.start()


# --- for the worker ---


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a process a worker. ``on_ready`` is called for `ready`; ``once_log`` is of `once`."""

    instance: int
    instances: int
    generation: int
    deployment: int
    on_ready: Callable[[], None]
    once_log: Log


def join(membership: Membership) -> None:
    """This process is a worker now. Called once, after the fork."""
    global instance, instances, generation, is_worker, is_primary, _on_ready
    instance, instances = membership.instance, membership.instances
    generation, is_worker, is_primary = membership.generation, True, False
    _on_ready = membership.on_ready
    Attempt.join(membership.once_log, membership.deployment)


def stand_for_primary(lock: Lock) -> Election:
    """This worker is ready: from now on it may be primary."""
    return Election(lock, _jobs, _set_primary)


def _set_primary(primary: bool) -> None:
    global is_primary
    is_primary = primary


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
