"""Elects the primary worker, and runs functions only there."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, Protocol

FIRST_DELAY, MAX_DELAY = 0.1, 15.0  # seconds before a job that has failed starts again
GROWTH = 1.5  # of that delay, from one failure to the next
STABLE = 30.0  # seconds after which a failure is a first one again

logger = logging.getLogger("gunicorn.error")


class Lock(Protocol):
    """A lock that at most one process holds; the kernel releases it when the process exits."""

    def take(self) -> bool: ...

    def free(self) -> None:
        """Release the lock, and wake the candidates."""


class Jobs:
    """The functions that run only in the primary worker; they run here while this worker is primary."""

    def __init__(self) -> None:
        self._functions: list[Callable[[], Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # while they run

    def add(self, function: Callable[[], Any]) -> None:
        """Add a function, from any thread."""
        self._functions.append(function)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start, function)

    def start(self) -> None:
        """Start the functions in the running event loop. Idempotent. Raises RuntimeError if no loop runs."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        for function in list(self._functions):
            self._start(function)

    def _start(self, function: Callable[[], Any]) -> None:
        if self._loop is not None:  # it has not ended meanwhile
            task = self._loop.create_task(_keep_running(function))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cancel the functions, and return when none runs any more."""
        self._loop = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        while tasks := [task for task in tasks if not task.done()]:
            await asyncio.wait(tasks)


async def _keep_running(function: Callable[[], Any]) -> None:
    """Run a function until it returns; start it again if it raises."""
    name = getattr(function, "__qualname__", repr(function))
    loop = asyncio.get_running_loop()
    delay = FIRST_DELAY
    while True:
        began = loop.time()
        try:
            await (function() if inspect.iscoroutinefunction(function) else _in_thread(function))
        except Exception:
            if loop.time() - began >= STABLE:
                delay = FIRST_DELAY
            logger.exception("%s failed on the primary worker; it starts again in %.1f s", name, delay)
        else:
            return
        await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
        delay = min(delay * GROWTH, MAX_DELAY)


async def _in_thread(function: Callable[[], Any]) -> None:
    """Run a function in a thread. A thread cannot be cancelled, so a cancelled waiter keeps waiting."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is awaited
            error = exc
        try:
            loop.call_soon_threadsafe(_settle, ended, error)
        except RuntimeError:  # the loop is closed: the process ends
            return

    name = getattr(function, "__qualname__", "primary")
    threading.Thread(target=copy_context().run, args=(run,), name=name, daemon=True).start()
    try:
        await asyncio.shield(ended)
    except asyncio.CancelledError:
        await ended
        raise


def _settle(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))


class Election:
    """Decides whether this worker is the primary worker. All of it runs in the worker's event loop.

    ``changed`` is called with the answer whenever it changes.
    """

    def __init__(self, lock: Lock, jobs: Jobs, changed: Callable[[bool], None]) -> None:
        self._lock = lock
        self._jobs = jobs
        self._changed = changed
        self._is_primary = False
        self._stands = True

    def look(self) -> None:
        """Become primary if no worker is. Called at each heartbeat, and when the lock was released."""
        if self._stands and not self._is_primary and self._lock.take():
            self._is_primary = True
            self._changed(True)
            self._jobs.start()

    async def give_up(self) -> None:
        """Give up the lock, because the worker drains. It is released only when all functions have ended."""
        self._stands = False
        if self._is_primary:
            self._is_primary = False
            self._changed(False)
            await self._jobs.end()
            self._lock.free()
