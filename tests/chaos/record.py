"""What clients have seen, and which moments excuse a request that failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field


def clock(moment: float) -> str:
    """A moment of the monotonic clock as the log's time stamps have it, with milliseconds."""
    wall = time.time() - time.monotonic() + moment
    return time.strftime("%H:%M:%S", time.localtime(wall)) + f".{int(wall % 1 * 1000):03}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was not answered in full, or a connection that was not had; in monotonic seconds."""

    began: float
    ended: float
    client: str
    what: str


@dataclass(frozen=True, slots=True)
class Excuse:
    """From ``begin`` to ``end``, workers could end with what they had in hand; monotonic seconds.

    With ``later_alone`` only what began after ``begin`` is excused: what was in hand is to be answered.
    With a ``client``, only clients of this kind are.
    """

    begin: float
    end: float
    reason: str
    later_alone: bool = False
    client: str | None = None

    def covers(self, failure: Failure) -> bool:
        if self.client not in (None, failure.client):
            return False
        if self.later_alone:
            return self.begin - 0.1 <= failure.began <= self.end
        return failure.began <= self.end and failure.ended >= self.begin


@dataclass
class Record:
    """Of one run. Clients write from their loop's thread, faults from another."""

    answered: Counter[str] = field(default_factory=Counter)  # requests by kind of client
    unsure: int = 0  # requests that nobody can tell of whether they were counted
    websockets: int = 0
    idle_ends: int = 0  # of connections, before anything was sent on them: nobody's failure
    failures: list[Failure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # answers that are not what was asked for
    excuses: list[Excuse] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, began: float, client: str, what: str, *, unsure: int = 1) -> None:
        with self._lock:
            self.failures.append(Failure(began, time.monotonic(), client, what))
            self.unsure += unsure

    def excuse(self, seconds: float, reason: str) -> None:
        """Excuse what fails from now on for so long."""
        now = time.monotonic()
        self.add(Excuse(now, now + seconds, reason))

    def add(self, excuse: Excuse) -> None:
        with self._lock:
            self.excuses.append(excuse)

    def unexcused(self) -> list[Failure]:
        with self._lock:
            return [
                failure
                for failure in self.failures
                if not any(excuse.covers(failure) for excuse in self.excuses)
            ]

    def summary(self) -> str:
        return (
            f"{sum(self.answered.values())} answered, {len(self.failures)} failed and excused, "
            f"{self.websockets} messages over WebSockets, {self.idle_ends} idle ends"
        )
