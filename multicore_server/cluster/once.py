"""What one worker does for all workers of a deployment: `once` and `once_sync`."""

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
    """The function has failed in another worker; the text names its exception."""


class Log(Protocol):
    """Of what has been done, by name; see `multicore_server.ipc.once_log`."""

    def begin(self, deployment: int, name: str) -> bool: ...

    def end(self, deployment: int, name: str) -> None: ...

    def outcomes(self, deployment: int, name: str) -> list[Any]: ...

    def add(self, outcome: Any) -> None: ...


class LocalLog:
    """Where there is one process, and so nobody else."""

    def __init__(self) -> None:
        self._outcomes: list[Any] = []

    def begin(self, deployment: int, name: str) -> bool:
        return True

    def end(self, deployment: int, name: str) -> None:
        """Nobody waits."""

    def outcomes(self, deployment: int, name: str) -> list[Any]:
        return [outcome for outcome in self._outcomes if outcome[1] == name]

    def add(self, outcome: Any) -> None:
        json.dumps(outcome[2])
        self._outcomes.append(outcome)


class Attempt:
    """One caller's way to the result: it calls the function itself, or waits for whoever does."""

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
        """Whether `value` is there. Raises OnceError where another worker has failed meanwhile."""
        outcomes = self._outcomes()
        if not outcomes:
            return False
        _, _, value, error = outcomes[-1]
        if not error:
            self.value = value
        elif len(outcomes) > self._seen:  # what failed earlier was told to others, and may be mended
            raise OnceError(f"{self.name}: {error}")
        return not error

    def _begin(self) -> bool:
        """One step: threads of this process may be here at the same time."""
        with self._guard:
            if self.name in self._running or not self._log.begin(self._deployment, self.name):
                return False
            self._running.add(self.name)
            return True

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it is this caller who calls the function, in the block. What that raises is told to those
        who wait; where it is cancelled, another one calls it."""
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
        """Raises TypeError or ValueError where the others cannot be given that value."""
        self._log.add((self._deployment, self.name, value, ""))
        self.value = value


async def once(name: str, function: Callable[[], Any]) -> Any:
    """Call a function, or a coroutine function, in one worker; return its result in all of them.

    It is called once in each deployment: a reload calls it again, the replacement of a worker does not. A
    function that is no coroutine function runs in a thread. If its worker dies, another one calls it. The
    result is what JSON can say, up to 64 KiB.

    Raises what the function raises, and OnceError in the workers that have waited; TypeError and ValueError
    for a result that cannot be passed on.
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
    """As `once`, for code that is not in an event loop: at import, or in a WSGI app. It waits."""
    attempt = Attempt(name)
    while not attempt.is_done():
        with attempt.turn() as ours:
            if ours:
                attempt.succeed(function())
        if not ours:
            time.sleep(LOOK)
    return attempt.value
