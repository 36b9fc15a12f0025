"""Requests that take long: logs them with the place where they wait, and ends them at a limit.

Requests in progress are kept in the order in which they began. Each heartbeat checks them, from the oldest to
the first that is young enough, so no request has a timer. A response that has begun is not checked: a stream
may last as long as it likes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from time import perf_counter
from typing import Any

from multicore_server.ipc.request_table import line_of
from multicore_server.ipc.scoreboard import Item, Row
from multicore_server.settings.table import Settings
from multicore_server.worker.access import NOTED
from multicore_server.worker.meter import COUNTED
from multicore_server.worker.queue_time import QUEUED
from multicore_server.worker.request_stack import stack_of, tasks_of_cycles, thread_awaited

REQUEST_TIMEOUTS = Item.REQUEST_TIMEOUTS.value
LATE = 0.3  # seconds between two heartbeats: the loop stood still, and what is ready by now is answered first
MOST_STACKS = 10  # in a look: to format one takes a fraction of a millisecond
SAID = 0.1  # seconds in the queue: less is not named
TIMEOUT = HTTPStatus.GATEWAY_TIMEOUT
UNLIMITED = (
    "request_timeout has no effect on a WSGI app that runs inline: timeout ends the worker with the request. "
    "It works with more than one thread"
)
BODY = f"{TIMEOUT.phrase}\n".encode()
ANSWER: tuple[dict[str, Any], ...] = (
    {
        "type": "http.response.start",
        "status": TIMEOUT.value,
        "headers": [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(BODY)),
            (b"connection", b"close"),
        ],
    },
    {"type": "http.response.body", "body": BODY},
)

logger = logging.getLogger("gunicorn.error")


class LongRequests:
    """``slow`` and ``limit`` are slow_request and request_timeout, None for none; ``thread`` is the event
    loop's. All but `look` is called there."""

    def __init__(
        self,
        row: Row,
        slow: float | None,
        limit: float | None,
        identity: Callable[[], str],
        thread: int,
    ) -> None:
        self._row = row
        self.slow = math.inf if slow is None else slow
        self._limit = math.inf if limit is None else limit
        self._least = min(self.slow, self._limit)
        self._identity = identity
        self._thread = thread
        self.running: dict[Any, None] = {}
        self.count: Callable[[Any, int], float] = lambda _, __: 0.0
        self._loop: asyncio.AbstractEventLoop | None = None  # once it has run
        self._swept = -math.inf  # of perf_counter
        self._told: set[Any] = set()
        self._stacks = 0  # that this look may still show
        self._tasks: dict[Any, asyncio.Task[Any]] | None = None  # of this look, by their cycles

    def __bool__(self) -> bool:
        """Whether there are requests to look at: the heart does not rest."""
        return bool(self.running)

    def sweep(self) -> None:
        """To be called at each heartbeat."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        now, before = perf_counter(), self._swept
        self._swept = now
        for cycle, age in self._begin_look():
            if cycle.status:  # its response has begun
                self.running.pop(cycle, None)
                if cycle in self._told:
                    self.over(cycle, cycle.status, age)
            elif age >= self._limit and now - before < LATE:
                self._end(cycle, age)
            elif age >= self.slow:
                self._tell(cycle, age)

    def look(self) -> None:
        """By a thread, while the event loop is blocked: what stands in its way is told now. What the loop
        changes meanwhile is left to the next look."""
        try:
            for cycle, age in self._begin_look():
                if not cycle.status and age >= self.slow:
                    self._tell(cycle, age)
        except RuntimeError:  # the dictionary has changed
            return

    def _begin_look(self) -> list[tuple[Any, float]]:
        """The cycles that are old enough, the oldest first, and their age."""
        found, now = [], perf_counter()
        for cycle in self.running:
            age = now - cycle.began
            if age < self._least:
                break
            found.append((cycle, age))
        self._stacks = MOST_STACKS
        self._tasks = None
        return found

    def _task_of(self, cycle: Any) -> asyncio.Task[Any] | None:
        """None: the app runs without a task, in the event loop's thread."""
        tasks = self._tasks  # the other thread may look again
        if tasks is None:
            self._tasks = tasks = {} if self._loop is None else tasks_of_cycles(self._loop)
        return tasks.get(cycle)

    # --- slow ones ---

    def _tell(self, cycle: Any, age: float) -> None:
        """Once: a request goes on for long."""
        if cycle in self._told:
            return
        self._told.add(cycle)
        text = "%s slow request: %s, no response after %.1f s%s%s"
        logger.warning(text, self._identity(), line_of(cycle.scope), age, _queued(cycle), self._at(cycle))

    def over(self, cycle: Any, status: int, seconds: float) -> None:
        """It is answered, after all."""
        self._told.discard(cycle)
        answer = "its client left" if cycle.disconnected else f"answered {status}" if status else "failed"
        text = "%s slow request: %s, %s after %.1f s%s"
        logger.warning(text, self._identity(), line_of(cycle.scope), answer, seconds, _queued(cycle))

    def _at(self, cycle: Any) -> str:
        self._stacks -= 1
        stack = stack_of(self._task_of(cycle), self._thread) if self._stacks >= 0 else ""
        return f"; it is here:\n{stack}" if stack else ""

    # --- the limit ---

    def _end(self, cycle: Any, age: float) -> None:
        """Answer in the app's place, and cancel it. Nothing that it sends from now on reaches the client."""
        self.running.pop(cycle, None)  # first: whatever fails below, it is tried once
        self._told.discard(cycle)
        self._row[REQUEST_TIMEOUTS] += 1
        at, task = self._at(cycle), self._task_of(cycle)
        goes_on = "" if task is None or thread_awaited(task) is None else "; its thread goes on"
        try:
            outcome = self._answer(cycle)
            for message in ANSWER:
                _note(cycle, message)
        finally:
            cycle.disconnected = True  # what the app sends is dropped, and it receives http.disconnect
            cycle.logger = _OfEnded(cycle.logger)
            if task is not None:
                task.cancel()
        text = "%s request_timeout: %s, no response after %.1f s%s; %s, and its task is cancelled%s%s"
        line = line_of(cycle.scope)
        logger.error(text, self._identity(), line, age, _queued(cycle), outcome, goes_on, at)

    def _answer(self, cycle: Any) -> str:
        """Send 504 the way that an app's response goes: it is counted and logged as one. Returns what was
        done."""
        if cycle.disconnected:
            self.count(cycle, 0)
            return "its client has left"
        if _at_once(_send(cycle)):
            return f"answered {TIMEOUT.value}"
        if cycle.status != COUNTED:
            self.count(cycle, TIMEOUT.value)
        close = getattr(cycle, "abort_stream", cycle.transport.close)  # HTTP/2 has others in the connection
        close()
        return "its connection is closed, because its client takes no answer"


async def _send(cycle: Any) -> None:
    for message in ANSWER:
        await cycle.send(message)


def _at_once(steps: Coroutine[Any, Any, None]) -> bool:
    """Run what has nothing to wait for; False where it has, or fails."""
    try:
        steps.send(None)
    except StopIteration:
        return True
    except Exception:
        logger.exception("a request beyond request_timeout could not be answered")
        return False
    steps.close()
    return False


def _note(cycle: Any, message: dict[str, Any]) -> None:
    """Tell the access log."""
    note = cycle.scope.get(NOTED)
    if note is not None:
        note(message)


def _queued(cycle: Any) -> str:
    """How long the request waited before it began here, where that is known and worth a word."""
    seconds = cycle.scope.get(QUEUED, 0.0)
    return f" and {seconds:.1f} s in the queue" if seconds >= SAID else ""


class _OfEnded:
    """What uvicorn says in the log of a request that was ended: that it was cancelled is no news."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._theirs, name)

    def error(self, text: str, *given: Any, exc_info: Any = None) -> None:
        if not isinstance(exc_info, asyncio.CancelledError):
            self._theirs.error(text, *given, exc_info=exc_info)


def long_requests(
    row: Row, settings: Settings, identity: Callable[[], str], *, inline: bool
) -> LongRequests | None:
    """What the settings ask for; None: nothing. To be made in the event loop's thread. ``inline``: the app
    has that thread too, and nobody can end its requests but the arbiter."""
    limit = None if inline else settings.request_timeout
    if limit is None and settings.slow_request is None:
        return None
    return LongRequests(row, settings.slow_request, limit, identity, threading.get_ident())
