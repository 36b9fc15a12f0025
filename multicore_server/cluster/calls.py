"""Calls the app's functions for messages: in order, safe from exceptions, with a log line for slow ones."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

MOST = 1000  # calls in progress; while there are so many, no message is taken
AT_ONCE = 50  # calls between two requests of an inline app
SLOW = 10.0  # seconds after which a call is named

# Calls a function where the app's functions may run, if that is not everywhere in the event loop.
Apart = Callable[[Callable[[], None]], Awaitable[None]]
# What a call has come to: its result, or its exception.
Done = Callable[[Any, Exception | None], None]

logger = logging.getLogger("gunicorn.error")


class Function(NamedTuple):
    """A function of the app. ``what`` names it in the log: "the message handler clear"."""

    what: str
    call: Callable[..., Any]
    is_async: bool

    @classmethod
    def of(cls, kind: str, call: Callable[..., Any]) -> Function:
        name = getattr(call, "__qualname__", repr(call))
        return cls(f"{kind} {name}", call, inspect.iscoroutinefunction(call))


class Running(NamedTuple):
    what: str
    began: float  # of time.monotonic
    counts: bool = True  # not where it calls those that do


class Waiting(NamedTuple):
    function: Function
    arguments: tuple[Any, ...]
    done: Done | None


class Calls:
    """Calls in progress, and calls that wait for their turn."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._apart: Apart | None = None
        self._waiting: deque[Waiting] = deque()
        self._caller: asyncio.Task[None] | None = None  # of those that wait
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[object, Running] = {}
        self._named: set[object] = set()
        self.on_room: Callable[[], None] = lambda: None  # there were too many, and are not any more
        self.spent: Callable[[float], None] = lambda _: None  # seconds in a call; in any thread

    def open(self, loop: asyncio.AbstractEventLoop, apart: Apart | None = None) -> None:
        """Call in this loop. If ``apart`` is given, it calls the functions that are not coroutine
        functions."""
        self._loop, self._apart = loop, apart

    @property
    def is_full(self) -> bool:
        return len(self._tasks) + len(self._waiting) >= MOST

    @property
    def is_busy(self) -> bool:
        return bool(self._tasks or self._waiting)

    def start(self, function: Function, *arguments: Any, done: Done | None = None) -> None:
        """Call a function, in the loop's thread. An exception is logged. ``done`` may be called in any
        thread."""
        if function.is_async or self._apart is None:
            self._call(function, arguments, done)
            return
        self._waiting.append(Waiting(function, arguments, done))
        if self._caller is None:
            self._caller = self._begin(self._call_waiting(self._apart), function.what)
            self._running[self._caller] = Running(function.what, time.monotonic(), False)

    def _call(self, function: Function, arguments: tuple[Any, ...], done: Done | None) -> None:
        began, token = time.monotonic(), object()
        self._running[token] = Running(function.what, began)
        try:
            answer = function.call(*arguments)
        except Exception as exc:  # noqa: BLE001 - whatever the app raises
            _failed(function, exc, done)
        else:
            if inspect.isawaitable(answer):
                self._begin_from_anywhere(_finish(function, answer, done), function.what)
            elif done is not None:
                done(answer, None)
        finally:
            del self._running[token]
            self._named.discard(token)
            self.spent(time.monotonic() - began)

    def _begin_from_anywhere(self, coroutine: Any, what: str) -> None:
        if self._apart is None or self._loop is None:
            self._begin(coroutine, what)
        else:
            self._loop.call_soon_threadsafe(self._begin, coroutine, what)

    def _begin(self, coroutine: Any, what: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine, loop=self._loop)
        self._tasks.add(task)
        self._running[task] = Running(what, time.monotonic())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        was_full = self.is_full
        self._tasks.discard(task)
        self._named.discard(task)
        running = self._running.pop(task)
        if running.counts:
            self.spent(time.monotonic() - running.began)
        if was_full and not self.is_full:
            self.on_room()

    async def _call_waiting(self, apart: Apart) -> None:
        try:
            while self._waiting:
                await apart(self._call_some)
                if not self.is_full:
                    self.on_room()
        finally:
            self._caller = None  # here, not later: what is added from now on needs another one

    def _call_some(self) -> None:
        for _ in range(min(len(self._waiting), AT_ONCE)):
            self._call(*self._waiting.popleft())

    def look(self) -> None:
        """Name the calls that do not end, once each."""
        late = time.monotonic() - SLOW
        for token, running in tuple(self._running.items()):
            if running.began <= late and running.counts and token not in self._named:
                self._named.add(token)
                logger.warning("%s has not ended after %.0f s", running.what, SLOW)

    async def settle(self, patience: float) -> bool:
        """Wait this many seconds for the calls in progress, then cancel the rest. Return whether there were
        any."""
        deadline = time.monotonic() + patience
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, deadline - time.monotonic()))
            if time.monotonic() >= deadline:
                break
        gave_up = bool(self._tasks)
        for task in tuple(self._tasks):
            logger.error("%s has not ended; it is cancelled", self._running[task].what)
            task.cancel()
        return gave_up


async def _finish(function: Function, answer: Awaitable[Any], done: Done | None) -> None:
    try:
        value = await answer
    except Exception as exc:  # noqa: BLE001 - whatever the app raises
        _failed(function, exc, done)
    else:
        if done is not None:
            done(value, None)


def _failed(function: Function, exc: Exception, done: Done | None) -> None:
    logger.error("%s failed", function.what, exc_info=exc)
    if done is not None:
        done(None, exc)
