"""The last events of the fleet, for /status and /events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from itertools import count
from typing import Any

from multicore_server.fleet.events import Event

MOST_EVENTS = 300
MOST_TEXT = 500  # characters of an event: the cause of a failed boot can be long


class EventLog:
    """Each event has a number of its own."""

    def __init__(self) -> None:
        self.entries: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._numbers = count(1)

    def record(self, events: Iterable[Event], at: float) -> None:
        """``at``: seconds since the epoch."""
        for event in events:
            entry = asdict(event) | {"id": next(self._numbers), "at": at, "text": event.text[:MOST_TEXT]}
            self.entries.append(entry)
