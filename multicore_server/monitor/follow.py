"""Sends events to clients as they happen: server-sent events (the WHATWG's HTML standard, 9.2)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator

from multicore_server.ipc.report import EventReport
from multicore_server.monitor.view import ReportView

POLL = 0.25  # seconds between two reads of the report, while a client follows
KEEP_ALIVE = 15.0  # seconds without an event, after which a comment is sent
MAX_DIGITS = 6  # of ?last=


class Follower:
    """Shows the ``last`` events that there are, then each new one."""

    def __init__(self, view: ReportView, last: int) -> None:
        self._view = view
        events = self._events()
        self._backlog = events[len(events) - min(last, len(events)) :]
        self._seen = events

    def new_events(self) -> list[EventReport]:
        """Return the events since the last call."""
        events, seen = self._events(), self._seen
        self._seen = events
        return [] if events is seen else new_since(seen, events)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        yield b": the events of this server\n\n"  # at once: the client sees that it is connected
        events, quiet_since = self._backlog, time.monotonic()
        while True:
            now = time.monotonic()
            if events:
                quiet_since = now
                yield b"".join(map(server_sent, events))
            elif now - quiet_since >= KEEP_ALIVE:
                quiet_since = now
                yield b": still here\n\n"
            await asyncio.sleep(POLL)
            events = self.new_events()

    def _events(self) -> list[EventReport]:
        report = self._view.report
        return [] if report is None else report["events"]


def new_since(seen: list[EventReport], events: list[EventReport]) -> list[EventReport]:
    """Return the events after the last of the ``seen`` ones; all events if that one is no longer there."""
    if seen:
        for place in range(len(events), 0, -1):
            if events[place - 1] == seen[-1]:
                return events[place:]
    return events


def server_sent(event: EventReport) -> bytes:
    """Return the event as a server-sent event. JSON has no line breaks."""
    return f"data: {json.dumps(event)}\n\n".encode()
