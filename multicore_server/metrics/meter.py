"""Counting requests as they pass, in the worker's row of the scoreboard.

A plain object for each request, whose ``send`` is no coroutine: two calls and a few writes are all that a
request pays. It is counted before its last bytes go to the transport, so a client that has its response
finds it in the next scrape, and a kill cannot lose it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable
from time import perf_counter
from typing import Any

from multicore_server.scoreboard import BUCKETS, CODES, METHODS, Item, Row

IN_PROGRESS = Item.IN_PROGRESS.value
WEBSOCKETS = Item.WEBSOCKETS.value
DURATIONS = Item.DURATIONS.value
DURATION_SUM = Item.DURATION_SUM.value

CELLS = {method: Item.REQUESTS.value + number * len(CODES) for number, method in enumerate(METHODS)}
OTHER = CELLS["other"]
FAILED = CODES.index("5xx")
LEFT = CODES.index("499")


class Meter:
    """An ASGI app around ``app``, directly inside uvicorn: it asks uvicorn whether the client has left."""

    def __init__(self, app: Any, row: Row) -> None:
        self.app = app
        self.row = row

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        kind = scope["type"]
        if kind == "http":
            return _Request(self.row, CELLS.get(scope["method"], OTHER), send).run(self.app, scope, receive)
        if kind == "websocket":
            return _WebSocket(self.row, send).run(self.app, scope, receive)
        passed: Awaitable[None] = self.app(scope, receive, send)
        return passed


class _Request:
    __slots__ = ("_began", "_cell", "_counted", "_row", "_send", "_status")

    def __init__(self, row: Row, cell: int, send: Any) -> None:
        self._row = row
        self._cell = cell
        self._send = send
        self._status = 0
        self._counted = False
        self._began = perf_counter()

    async def run(self, app: Any, scope: Any, receive: Any) -> None:
        self._row[IN_PROGRESS] += 1
        try:
            await app(scope, receive, self.send)
        finally:
            # It raised, or returned without a complete response: uvicorn answers 500, or cuts it.
            if not self._counted:
                self._count(FAILED)

    def send(self, message: Any) -> Any:
        kind = message["type"]
        if kind == "http.response.body":
            if not (self._counted or message.get("more_body", False)):
                self._count(self._status // 100 - 1)
        elif kind == "http.response.start":
            self._status = message["status"]
        return self._send(message)

    @property
    def disconnected(self) -> bool:
        """Whether the client has left, as uvicorn's request cycle knows it."""
        return bool(getattr(getattr(self._send, "__self__", None), "disconnected", False))

    def _count(self, code: int) -> None:
        """The sum last: a kill in between costs an observation of it and no count."""
        self._counted = True
        if self.disconnected:
            code = LEFT
        elif not 0 <= code < LEFT:  # no status, or none that HTTP has: uvicorn raises for it
            code = FAILED
        row, seconds = self._row, perf_counter() - self._began
        row[self._cell + code] += 1
        row[DURATIONS + bisect_left(BUCKETS, seconds)] += 1
        row[DURATION_SUM] += seconds
        row[IN_PROGRESS] -= 1


class _WebSocket:
    __slots__ = ("_opened", "_row", "_send")

    def __init__(self, row: Row, send: Any) -> None:
        self._row = row
        self._send = send
        self._opened = False

    async def run(self, app: Any, scope: Any, receive: Any) -> None:
        try:
            await app(scope, receive, self.send)
        finally:
            self._row[WEBSOCKETS] -= self._opened

    async def send(self, message: Any) -> None:
        await self._send(message)
        if message["type"] == "websocket.accept" and not self._opened:
            self._opened = True
            self._row[WEBSOCKETS] += 1
