"""The last events of the fleet, for /status and /events."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from itertools import count
from typing import Any

from multicore_server.fleet.events import Event

MOST_EVENTS = 300


MOST_TEXT = 500  # characters of an event: the cause of a failed boot can be long


class EventLog:
    """The last events, each with a number of its own."""

    def __init__(self) -> None:
        self.entries: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._numbers = count(1)

    def note(self, event: Event, at: float) -> None:
        entry = asdict(event) | {"id": next(self._numbers), "at": at, "text": event.text[:MOST_TEXT]}
        self.entries.append(entry)
