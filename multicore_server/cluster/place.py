"""What the app knows of this process: its number, and everything that the app has registered."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

from multicore_server.cluster.actions import Actions
from multicore_server.cluster.calls import Calls
from multicore_server.cluster.messaging import LocalPost, Post, Receivers
from multicore_server.cluster.primary import Jobs

logger = logging.getLogger("gunicorn.error")


class Place:
    """The state of this process; in a test, of one of several instances in it.

    By default, the app is the only instance.
    """

    def __init__(self) -> None:
        self.instance = 0
        self.instances = 1
        self.generation = 0
        self.is_worker = False
        self.is_primary = True
        self.draining = False
        self.on_ready: Callable[[], None] | None = None
        self.on_drain: list[Callable[[], Any]] = []
        self.on_shutdown: list[Callable[[], Any]] = []
        self.jobs = Jobs()
        self.calls = Calls()
        self.receivers = Receivers(self.calls)
        self.actions = Actions(self.calls)
        self.post: Post = LocalPost(0, {0: self.receivers})
        self.waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = set()

    async def wait_draining(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = (loop, loop.create_future())
        self.waiting.add(waiter)
        try:
            if (
                not self.draining
            ):  # asked after the waiter is there: `begin_to_drain` does it the other way round
                await waiter[1]
        finally:
            self.waiting.discard(waiter)

    def begin_to_drain(self) -> None:
        """Start the drain. Idempotent. May run inside a signal handler."""
        self.draining = True
        for loop, waiter in list(self.waiting):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(_wake, waiter)

    def call_on_drain(self) -> list[Coroutine[Any, Any, None]]:
        """Call the callbacks. Return the coroutines to await."""
        return _call("on_drain", self.on_drain)

    def call_on_shutdown(self) -> list[Coroutine[Any, Any, None]]:
        """Call the callbacks. Return the coroutines to await."""
        return _call("on_shutdown", self.on_shutdown)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Run the block, and the tasks that it starts, in this instance. For tests."""
        token = _here.set(self)
        try:
            yield
        finally:
            _here.reset(token)


_process = Place()
_here: ContextVar[Place | None] = ContextVar("multicore_server.place", default=None)


def here() -> Place:
    return _here.get() or _process


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


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
