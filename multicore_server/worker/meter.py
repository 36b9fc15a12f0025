"""Counting requests as they pass, in the worker's row of the scoreboard.

uvicorn makes a cycle for each request and its response; ours notes the status on its way and counts the
request before its last bytes go to the transport: a client that has its response finds it in the next
scrape, and a kill cannot lose it. What uvicorn answers by itself (500 where the app fails, 503 beyond
``limit_concurrency``) passes the same way. A middleware would see less and cost half as much again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from uvicorn.protocols.http import h11_impl, httptools_impl

from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, Item, Row

DURATIONS = Item.DURATIONS.value
DURATION_SUM = Item.DURATION_SUM.value
WEBSOCKETS = Item.WEBSOCKETS.value

CELLS = {method: Item.REQUESTS.value + number * len(CODES) for number, method in enumerate(METHODS)}
OTHER = CELLS["other"]
FAILED = CODES.index("5xx")
LEFT = CODES.index("499")
MODULES: tuple[Any, ...] = (httptools_impl, h11_impl)
COUNTED = -1  # in place of a cycle's status


def metered(cycle: Any, row: Row) -> Any:
    """uvicorn's ``RequestResponseCycle``, with its requests counted in ``row``."""
    run, send = cycle.run_asgi, cycle.send

    def count(self: Any, status: int) -> None:
        self.status = COUNTED
        code = status // 100 - 1
        if self.disconnected:
            code = LEFT
        elif not 0 <= code <= FAILED:  # no status, or none that HTTP has
            code = FAILED
        seconds = perf_counter() - self.began
        row[CELLS.get(self.scope["method"], OTHER) + code] += 1
        row[DURATIONS + bisect_left(BUCKETS, seconds)] += 1
        row[DURATION_SUM] += seconds  # last: a kill in between costs an observation of it, and no count

    class Metered(cycle):  # type: ignore[misc]  # a class that is chosen when it runs
        status = 0

        async def run_asgi(self, app: Any) -> None:
            self.began = perf_counter()
            try:
                await run(self, app)
            finally:
                if self.status != COUNTED:  # its response is cut short: the app's fault, or the client's
                    count(self, 0)

        def send(self, message: Any) -> Any:
            kind = message["type"]
            if kind == "http.response.body":
                if not message.get("more_body", False) and self.status != COUNTED:
                    count(self, self.status)
            elif kind == "http.response.start" and self.status == 0:
                self.status = message["status"]
            return send(self, message)

    return Metered


def counted_websocket(protocol: Any, row: Row) -> Any:
    """A WebSocket protocol of uvicorn's, with its open connections counted in ``row``."""

    class Counted(protocol):  # type: ignore[misc]  # a class that is chosen when it runs
        def connection_made(self, transport: Any) -> None:
            row[WEBSOCKETS] += 1
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            row[WEBSOCKETS] -= 1
            super().connection_lost(exc)

    Counted.__name__ = protocol.__name__
    return Counted


def install(row: Row) -> None:
    """In a worker process, before its first connection: count what its HTTP protocols serve."""
    for module in MODULES:
        module.RequestResponseCycle = metered(module.RequestResponseCycle, row)


@contextmanager
def installed(row: Row) -> Iterator[None]:
    """`install`, and back to what was there: for tests."""
    before = [module.RequestResponseCycle for module in MODULES]
    install(row)
    try:
        yield
    finally:
        for module, cycle in zip(MODULES, before, strict=True):
            module.RequestResponseCycle = cycle
