"""Keeps the last events of the fleet, for /status and /events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import count

from multicore_server.fleet.events import Event
from multicore_server.ipc.report import EventReport

MOST_EVENTS = 300
MOST_TEXT = 500  # characters of an event: the cause of a failed boot can be long


class EventLog:
    """Each event has a number of its own."""

    def __init__(self) -> None:
        self.entries: deque[EventReport] = deque(maxlen=MOST_EVENTS)
        self._numbers = count(1)

    def record(self, events: Iterable[Event], at: float) -> None:
        """``at``: seconds since the epoch."""
        for event in events:
            self.entries.append(
                {
                    "kind": event.kind,
                    "text": event.text[:MOST_TEXT],
                    "public": event.public[:MOST_TEXT],
                    "level": event.level,
                    "reason": event.reason,
                    "instance": event.instance,
                    "generation": event.generation,
                    "pid": event.pid,
                    "in_hand": event.in_hand[:MOST_TEXT],
                    "id": next(self._numbers),
                    "at": at,
                }
            )
