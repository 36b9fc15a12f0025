"""Counts requests as they pass, in the worker's row of the scoreboard.

uvicorn makes a cycle for each request and its response. Ours notes the status on its way, and counts the
request before its last bytes go to the transport. So a client that has its response finds it in the next
scrape, and a kill cannot lose it. Responses that uvicorn makes by itself (500 if the app fails, 503 beyond
``limit_concurrency``) pass the same way. A middleware would see less and cost half as much again.
"""

from __future__ import annotations

import inspect
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from time import perf_counter
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from uvicorn.protocols.http import h11_impl, httptools_impl

from multicore_server.ipc.request_table import NONE, RequestTable, Writer
from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, Item, Row
from multicore_server.worker.heads import LENGTH, LISTS, is_bodiless
from multicore_server.worker.queue_time import QueueTime

DURATIONS = Item.DURATIONS.value
DURATION_SUM = Item.DURATION_SUM.value
IN_HAND = Item.IN_HAND.value
WEBSOCKETS = Item.WEBSOCKETS.value

CELLS = {method: Item.REQUESTS.value + number * len(CODES) for number, method in enumerate(METHODS)}
OTHER = CELLS["other"]
FAILED = CODES.index("5xx")
LEFT = CODES.index("499")
MODULES: tuple[ModuleType, ...] = (httptools_impl, h11_impl)
SHORTEST = BUCKETS[0]  # seconds: most requests are below it
COUNTED = -1  # in place of a cycle's status


class Meter(NamedTuple):
    """Two methods of a cycle of uvicorn's. ``begin`` is called when the app is about to be; ``finish`` once,
    with the status of the response, 0 where it has none: it returns the seconds that were taken."""

    begin: Callable[[Any], None]
    finish: Callable[[Any, int], float]


class Watch(Protocol):
    """Who looks after requests that take long."""

    running: dict[Any, None]  # the cycles in progress that are looked after, in the order of their begin
    slow: float  # seconds
    count: Callable[[Any, int], float]  # of the meter: for those that are ended without a response

    def over(self, cycle: Any, status: int, seconds: float) -> None:
        """A cycle has ended that was still in ``running`` and took that long."""
        ...


def meter_of(
    row: Row, in_hand: Writer | None = None, queue: QueueTime | None = None, watch: Watch | None = None
) -> Meter:
    """Counts in ``row``, and notes in ``in_hand`` what is in progress, for ``watch`` too; ``queue`` is asked
    how long some requests have waited."""
    writer = in_hand or RequestTable(1).writer(0)
    note, forget = writer.begin, writer.end
    ask = (queue or QueueTime(row)).ask
    before_asking = 1
    running, slow = (None, math.inf) if watch is None else (watch.running, watch.slow)

    def begin(cycle: Any) -> None:
        nonlocal before_asking
        cycle.began = since = perf_counter()  # of CLOCK_MONOTONIC
        cycle.entry = note(cycle.scope, since)
        before_asking -= 1
        if not before_asking:
            before_asking = ask(cycle, since)
        if running is not None:
            running[cycle] = None

    def count(cycle: Any, status: int) -> float:
        cycle.status = COUNTED
        if cycle.entry >= 0:
            forget(cycle.entry)
            cycle.entry = NONE
        code = status // 100 - 1
        if cycle.disconnected:
            code = LEFT
        elif not 0 <= code <= FAILED:  # no status, or none that HTTP has
            code = FAILED
        seconds: float = perf_counter() - cycle.began
        row[CELLS.get(cycle.scope["method"], OTHER) + code] += 1
        row[DURATIONS if seconds <= SHORTEST else DURATIONS + bisect_left(BUCKETS, seconds)] += 1
        row[DURATION_SUM] += seconds  # last: a kill in between costs an observation of it, and no count
        if running is not None and running.pop(cycle, False) is None and seconds >= slow:
            watch.over(cycle, status, seconds)  # type: ignore[union-attr]
        return seconds

    return Meter(begin, count)


def metered(cycle: Any, meter: Meter, load: Row | None = None) -> Any:
    """uvicorn's ``RequestResponseCycle``, with its requests counted; in ``load`` also as in progress, where
    their connections do not do that."""
    run, send, (begin, count) = cycle.run_asgi, cycle.send, meter

    class Metered(cycle, Progress):  # type: ignore[misc]  # a class that is chosen when it runs
        entry = NONE
        is_load = False

        async def run_asgi(self, app: Any) -> None:
            begin(self)
            if load is not None:
                self.is_load = True
                load[IN_HAND] += 1
            try:
                await run(self, app)
            finally:
                self.unload()
                if self.status != COUNTED:  # its response is cut short: the app's fault, or the client's
                    count(self, 0)

        def send(self, message: Any) -> Any:
            if self.status != COUNTED and self.completes(message):
                # Before the client has it all: its next connection may come before this process runs on.
                self.unload()
                count(self, self.status)
            return send(self, message)

        def unload(self) -> None:
            if self.is_load:
                self.is_load = False
                load[IN_HAND] -= 1  # type: ignore[index]

    return Metered


class Progress:
    """Mixed into uvicorn's ``RequestResponseCycle``: how much of the response the client has."""

    status = 0
    left: int | None = None  # bytes that the client lacks, where the head says how many
    scope: Any

    def completes(self, message: Any) -> bool:
        """Whether the client has all of the response with it, whatever the app does then."""
        kind = message["type"]
        if kind == "http.response.start" and self.status == 0:
            status = message["status"]
            self.status = status if isinstance(status, int) else 0
            self.left = length_of(self.scope["method"], status, message.get("headers", ()))
            return self.left == 0
        if kind != "http.response.body":
            return False
        if self.left is not None:
            self.left -= len(message.get("body", b""))
        return self.left == 0 or not message.get("more_body", False)


def length_of(method: str, status: Any, headers: Any) -> int | None:
    """The bytes behind a response's head (RFC 9112 6.3), None where the head does not say how many."""
    if is_bodiless(method, status):
        return 0
    if type(headers) not in LISTS:  # what is read once is uvicorn's to read
        return None
    try:
        return next((int(value) for name, value in headers if name.lower() == LENGTH), None)
    except (AttributeError, TypeError, ValueError):  # uvicorn is to say what is wrong with it
        return None


def counted_websocket(protocol: Any, row: Row) -> Any:
    """A WebSocket protocol of uvicorn's, with its open connections counted in ``row``; or what makes one."""
    if not inspect.isclass(protocol):
        return _counted_by_maker(protocol, row)

    class Counted(protocol):  # type: ignore[misc]  # a class that is chosen when it runs
        def connection_made(self, transport: Any) -> None:
            row[WEBSOCKETS] += 1
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            row[WEBSOCKETS] -= 1
            super().connection_lost(exc)

    Counted.__name__ = protocol.__name__
    return Counted


def _counted_by_maker(make: Callable[..., Any], row: Row) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    def made(*args: Any, **given: Any) -> Any:
        protocol = make(*args, **given)
        cls = type(protocol)
        if cls not in known:
            known[cls] = counted_websocket(cls, row)
        protocol.__class__ = known[cls]
        return protocol

    return made


def modules_of(protocol: type) -> tuple[ModuleType, ...]:
    """The loaded modules whose ``RequestResponseCycle`` a protocol may use and ours can count.

    These are its own modules and those beside them, also of a protocol that is newer than this package.
    """
    if not inspect.isclass(protocol):  # a function that makes one: nobody knows which
        return ()
    packages = {cls.__module__.rpartition(".")[0] for cls in protocol.__mro__} - {"", "asyncio"}
    beside = [module for package in packages for module in _loaded_in(package)]
    own = [sys.modules[cls.__module__] for cls in protocol.__mro__ if cls.__module__ in sys.modules]
    return tuple({id(module): module for module in (*own, *beside) if _can_be_counted(module)}.values())


def _loaded_in(package: str) -> Iterator[ModuleType]:
    """Its modules. Without a walk through `sys.modules`: to look at an object is to write to it, and the
    worker would get a copy of every page that holds a module."""
    for name in list(vars(sys.modules[package])) if package in sys.modules else ():
        module = sys.modules.get(f"{package}.{name}")
        if module is not None:
            yield module


def _can_be_counted(module: ModuleType) -> bool:
    cycle = getattr(module, "RequestResponseCycle", None)
    if cycle is None or not (hasattr(cycle, "run_asgi") and hasattr(cycle, "send")):
        return False
    set_there = getattr(getattr(cycle.__init__, "__code__", None), "co_names", ())
    return "scope" in set_there and "disconnected" in set_there
