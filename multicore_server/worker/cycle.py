"""A request and its response on httptools: counts it, and sends it in one piece if possible.

uvicorn writes the head of a response when the app gives it, and the body when that comes: two system calls
and two packets, although both are usually known at once. Here the head waits for the first part of the body,
but no longer than until the loop turns. So a stream whose first part comes later sends its head early.

If several requests are in progress, a complete response waits for the same time: most of the cost of a write
is waking the client, and a client that is awake takes many responses for the price of one. Unusual cases are
left to uvicorn's own cycle.
"""

from __future__ import annotations

from asyncio import get_running_loop
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from time import perf_counter
from types import ModuleType
from typing import Any

from uvicorn.protocols.http import httptools_impl

from multicore_server.connections.cycles import ADDED
from multicore_server.connections.room import make_room
from multicore_server.hosts import Feature, lacks
from multicore_server.ipc.request_table import NONE, Writer
from multicore_server.ipc.scoreboard import Row
from multicore_server.worker.heads import Heads, is_bodiless
from multicore_server.worker.meter import COUNTED, MODULES, Meter, Watch, length_of, meter_of, metered
from multicore_server.worker.queue_time import QueueTime

JOINED = 16 * 1024  # bytes: a body up to this is copied behind its head, a longer one goes beside it
# Seconds that a request takes whose response may wait for others: below, its client is awake anyway; above,
# the others may take as long.
QUICK = (10e-6, 1e-3)
MOST_HELD = 2e-3  # seconds that a response waits at most, and the call in progress
MOST_JOINED = 1e-3  # seconds behind a write in which what follows it waits for more


class Held:
    """Cycles whose head, or whole response, waits until the loop turns."""

    def __init__(self) -> None:
        self.cycles: list[Any] = []
        self.since = 0.0  # of perf_counter: when the first of their requests began

    def add(self, cycle: Any) -> None:
        if not self.cycles:
            loop = None if cycle.state is None else cycle.state.loop
            (loop or get_running_loop()).call_soon(self.release)
            self.since = cycle.began
        self.cycles.append(cycle)

    def release(self) -> None:
        cycles, self.cycles = self.cycles, []
        for cycle in cycles:
            if cycle.head:
                cycle.release()


class JoinedCycle:
    """Mixed into uvicorn's ``RequestResponseCycle`` of httptools; ``_run`` and ``_send`` are its methods."""

    status = 0
    head = b""  # not sent yet; where it `ends`, with the body
    ends = False  # all of the response waits, and what follows from it
    began = 0.0  # of perf_counter
    sent_whole = False  # head and body in one write
    took = 0.0  # seconds
    wrote = 0.0  # of perf_counter: when a part of a stream was written at once
    state: Any = None  # of the connections, where responses may wait for each other
    answers_whole = True  # by `answer`
    ends_by_close = False  # the client cannot tell by a length that it has all of the response
    ends_its_task = True  # a callback for that, at each task's end, costs as much as the task
    entry = NONE  # in the table of requests in progress
    task: Any = None  # that the state has, until it ends
    known: Any = None  # the head of its request, where that has come before
    scope: Any
    transport: Any
    flow: Any
    message_event: Any
    on_response: Callable[[], None]
    receive: Any
    keep_alive: bool
    disconnected: bool
    waiting_for_100_continue: bool
    response_started: bool
    response_complete: bool
    chunked_encoding: bool | None
    expected_content_length: int
    _run: Any
    _send: Any
    begin: Callable[[], None]
    _count: Callable[[int], float]
    _make_head: Callable[[Any, Any, Iterable[Any]], bytes | None]
    _held: Held

    async def run_asgi(self, app: Any) -> None:
        if not self.began:
            self.begin()
        try:
            outcome = await app(self.scope, self.receive, self.send)
            if outcome is not None or not (self.response_complete or self.ends or self.disconnected):
                self.release()
                await self._run(_as_before(outcome=outcome))
        except BaseException as exc:  # noqa: BLE001 - uvicorn's to judge
            self.release()
            await self._run(_as_before(exc))
        finally:
            if self.status != COUNTED:  # its response is cut short: the app's fault, or the client's
                self._count(0)
            if not self.ends:
                self.on_response = _nothing  # uvicorn's own way to leave no circle of references
            task, self.task = self.task, None
            if task is not None:
                self.state.tasks.discard(task)

    async def send(self, message: Any) -> None:
        kind = message["type"]
        if self.ends:  # uvicorn is to say that nothing may follow
            self.release()
        if kind == "http.response.body":
            more = message.get("more_body", False)
            if self.flow.write_paused and self.response_started and not self.disconnected:
                await self.flow.drain()
            if self.status != COUNTED and (not more or self._is_whole_with(message.get("body", b""))):
                self.took = self._count(self.status)
            if self.disconnected or (
                self.response_started
                and not self.response_complete
                and self._send_body(message.get("body", b""), more)
            ):
                return
        elif kind == "http.response.start" and not self.response_started:
            if self.flow.write_paused and not self.disconnected:
                await self.flow.drain()
            status, headers = message["status"], message.get("headers", ())
            if self.disconnected or self._start(status, headers):
                return
            if self.status != COUNTED and length_of(self.scope["method"], status, headers) == 0:
                self.took = self._count(self.status)
        self.release()
        await self._send(message)

    def answer(self, status: int, headers: Iterable[Any], body: bytes) -> bool:
        """Send a whole response, whose length is known. False: nothing was done, `send` is to do it."""
        if self.flow.write_paused or self.disconnected or self.response_started:
            return False
        head = self._make_head(self, status, headers)
        if head is None:
            return False
        self.response_started = True
        self.waiting_for_100_continue = False
        self.expected_content_length = 0
        self.took = self._count(status)
        self.head = head
        if QUICK[0] < self.took < QUICK[1] and self._may_wait(body):
            self._held.add(self)
            self._wait(body)
        else:
            self._finish(body)
            self.on_response = _nothing
        return True

    def _start(self, status: Any, headers: Iterable[Any]) -> bool:
        """Whether the head is made: it waits for the body."""
        if self.status == 0 and isinstance(status, int):
            self.status = status
        head = self._make_head(self, status, headers)
        if head is None:
            return False
        self.response_started = True
        self.waiting_for_100_continue = False
        self.head = head
        self._held.add(self)
        return True

    def _send_body(self, body: Any, more: Any) -> bool:
        """Whether it is done; otherwise uvicorn is to say what is wrong with it."""
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body = b"%b0\r\n\r\n" % body
        else:
            left = self.expected_content_length - len(body)
            if left < 0 or (left and not more):
                return False
            self.expected_content_length = left
        if more:
            self._send_part(body)
        elif self.head and QUICK[0] < self.took < QUICK[1] and self._may_wait(body):
            self._wait(body)
        else:
            self._finish(body)
        return True

    def _send_part(self, body: Any) -> None:
        """Of a stream. Those that the app gives one right after the other leave together: what waits does so
        until the loop turns, or there is enough of it."""
        now, state = perf_counter(), self.state
        joins = now - self.wrote < MOST_JOINED and state is not None and state.joins_chunks
        if joins and len(self.head) + len(body) <= JOINED:
            if not self.head:
                self._held.add(self)
            self.head += body
            return
        self.wrote = now
        if self.head:
            self._write_with_head(body)
        else:
            self.transport.write(body)

    def _is_whole_with(self, body: Any) -> bool:
        """Whether the client has all of the response when it has this too, whatever the app does then."""
        if is_bodiless(self.scope["method"], self.status):
            return True
        ends = self.chunked_encoding is False and not self.ends_by_close
        return ends and bool(self.expected_content_length == len(body))

    def _may_wait(self, body: Any) -> bool:
        """Whether other responses will follow soon, or do so in this turn."""
        state = self.state
        return (
            self.keep_alive
            and state is not None
            and (len(state.tasks) > 1 or state.scheduled or len(self._held.cycles) > bool(self.head))
            and state.is_brisk
            and len(body) <= JOINED
        )

    def _wait(self, body: Any) -> None:
        self.head += body
        self.ends = True
        held = self._held
        if self.began + self.took - held.since > MOST_HELD:
            held.release()

    def _write_with_head(self, body: Any) -> None:
        head, self.head = self.head, b""
        self.sent_whole = not self.wrote
        if len(body) <= JOINED:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))

    def _finish(self, body: Any) -> None:
        """Send the last of the response."""
        if self.head:
            self._write_with_head(body)
        else:
            self.transport.write(body)
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def release(self) -> None:
        """Send what waits."""
        head, self.head = self.head, b""
        if head and not (self.disconnected or self.transport.is_closing()):
            if self.status != COUNTED and self._is_whole_with(b""):
                self.took = self._count(self.status)
            self.transport.write(head)
        if self.ends:
            self.ends = False
            self.sent_whole = not self.wrote
            self._complete()
            self.on_response = _nothing


def joined(theirs: Any, meter: Meter) -> Any:
    """uvicorn's ``RequestResponseCycle`` of httptools, counted."""
    own = {
        "_run": theirs.run_asgi,
        "_send": theirs.send,
        "begin": meter.begin,
        "_count": meter.finish,
        "_make_head": staticmethod(Heads().make),
        "_held": Held(),
    }
    made: Any = type(theirs.__name__, (JoinedCycle, theirs), own)
    make_room(made(**dict.fromkeys(list(signature(theirs).parameters))), ADDED)
    return made


def install(
    row: Row,
    in_hand: Writer | None = None,
    modules: Iterable[ModuleType] = MODULES,
    load: Callable[[str], bool] = lambda _: False,
    queue: QueueTime | None = None,
    watch: Watch | None = None,
) -> None:
    """In a worker process, before its first connection: count what its HTTP protocols serve. ``load`` says of
    a module whether its cycles are the worker's load one by one, because their connections do not count.
    ``watch`` looks after those that take long."""
    meter = meter_of(row, in_hand, queue, watch)
    if watch is not None:
        watch.count = meter.finish
    for module in modules:
        theirs: Any = module.RequestResponseCycle
        if module is httptools_impl and not lacks(Feature.HTTPTOOLS_JOINS):
            made = joined(theirs, meter)
        else:
            made = metered(theirs, meter, row if load(module.__name__) else None)
        module.RequestResponseCycle = made  # type: ignore[attr-defined]


@contextmanager
def installed(row: Row, in_hand: Writer | None = None) -> Iterator[None]:
    """`install`, and back to what was there: for tests."""
    before = [module.RequestResponseCycle for module in MODULES]
    install(row, in_hand)
    try:
        yield
    finally:
        for module, cycle in zip(MODULES, before, strict=True):
            module.RequestResponseCycle = cycle  # type: ignore[attr-defined]


def _as_before(exc: BaseException | None = None, outcome: Any = None) -> Callable[..., Any]:
    """An app that ends as another one did."""

    async def app(*_: Any) -> Any:
        if exc is not None:
            raise exc
        return outcome

    return app


def _nothing() -> None:
    """In place of what was to be done after a response."""
