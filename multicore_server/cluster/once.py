"""`once` and `once_sync`: one worker does something for all workers of a deployment."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

LOOK = 0.02  # seconds between two looks at what another worker does


class OnceError(Exception):
    """The function failed in another worker; the text names its exception."""


class Log(Protocol):
    """The results by name; see `multicore_server.ipc.once_log`."""

    def begin(self, deployment: int, name: str) -> bool: ...

    def end(self, deployment: int, name: str) -> None: ...

    def outcomes(self, deployment: int, name: str) -> list[Any]: ...

    def add(self, outcome: Any) -> None: ...


class LocalLog:
    """The log if there is only one process."""

    def __init__(self) -> None:
        self._outcomes: list[Any] = []

    def begin(self, deployment: int, name: str) -> bool:
        return True

    def end(self, deployment: int, name: str) -> None:
        """Do nothing: no other process waits."""

    def outcomes(self, deployment: int, name: str) -> list[Any]:
        return [outcome for outcome in self._outcomes if outcome[1] == name]

    def add(self, outcome: Any) -> None:
        json.dumps(outcome[2])
        self._outcomes.append(outcome)


class Attempt:
    """One caller's attempt to get the result: it calls the function itself, or waits for the worker that
    does."""

    _log: ClassVar[Log] = LocalLog()
    _deployment: ClassVar[int] = 0
    _running: ClassVar[set[str]] = set()  # in this process, whose threads and tasks share its locks
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Any = None
        self._seen = len(self._outcomes())

    @classmethod
    def join(cls, log: Log, deployment: int) -> None:
        cls._log, cls._deployment, cls._running = log, deployment, set()

    def _outcomes(self) -> list[Any]:
        return self._log.outcomes(self._deployment, self.name)

    def is_done(self) -> bool:
        """Return whether `value` is there. Raises OnceError if another worker has failed meanwhile."""
        outcomes = self._outcomes()
        if not outcomes:
            return False
        _, _, value, error = outcomes[-1]
        if not error:
            self.value = value
        elif len(outcomes) > self._seen:  # what failed earlier was told to others, and may be repaired
            raise OnceError(f"{self.name}: {error}")
        return not error

    def _begin(self) -> bool:
        """Claim the call in one step: several threads of this process may be here at the same time."""
        with self._guard:
            if self.name in self._running or not self._log.begin(self._deployment, self.name):
                return False
            self._running.add(self.name)
            return True

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Yield whether this caller calls the function, in the block.

        If the function raises, the waiting workers get the exception's text. If it is cancelled, another
        caller calls it.
        """
        if not self._begin():
            yield False
            return
        try:
            yield not self.is_done()
        except OnceError:
            raise
        except (Exception, SystemExit) as exc:
            self._log.add((self._deployment, self.name, None, f"{type(exc).__name__}: {exc}"[:1000]))
            raise
        finally:
            self._running.discard(self.name)
            self._log.end(self._deployment, self.name)

    def succeed(self, value: Any) -> None:
        """Store the result. Raises TypeError or ValueError if it cannot be passed to the other workers."""
        self._log.add((self._deployment, self.name, value, ""))
        self.value = value


async def once(name: str, function: Callable[[], Any]) -> Any:
    """Call a function, or a coroutine function, in one worker; return its result in all of them.

    It is called once in each deployment: a reload calls it again, the replacement of a worker does not. A
    function that is not a coroutine function runs in a thread. If its worker crashes, another worker calls
    it. The result is JSON, up to 64 KiB.

    Raises what the function raises, OnceError in the workers that waited, and TypeError or ValueError for a
    result that cannot be passed on.
    """
    attempt = Attempt(name)
    while not attempt.is_done():
        with attempt.turn() as ours:
            if ours:
                attempt.succeed(await _called(function))
        if not ours:
            await asyncio.sleep(LOOK)
    return attempt.value


async def _called(function: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function()
    return await asyncio.to_thread(function)


def once_sync(name: str, function: Callable[[], Any]) -> Any:
    """Call like `once`, for code outside of an event loop: at import, or in a WSGI app. It blocks while it
    waits."""
    attempt = Attempt(name)
    while not attempt.is_done():
        with attempt.turn() as ours:
            if ours:
                attempt.succeed(function())
        if not ours:
            time.sleep(LOOK)
    return attempt.value
