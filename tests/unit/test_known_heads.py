"""Heads that have come before: the requests that come of them are those that a parser would have made."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections import factory, known_heads
from multicore_server.connections.factory import ProtocolFactory, movable
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.known_heads import (
    AT_BEGIN,
    EACH,
    END,
    KNOWN,
    LONGEST,
    PAUSE,
    TRIAL,
    Known,
    KnownHeads,
)
from multicore_server.connections.limits import Limits
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import installed
from tests.unit.fake_transport import GET, LAST, POST, FakeTransport

HEAD = b"HEAD /a%20b?c=d HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
EMPTY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n"
LATER_LAST = LATER.replace(b"host", b"connection: close\r\nhost")
OLD = b"GET / HTTP/1.0\r\n\r\n"
NOT_KNOWN = {
    "a body": POST,
    "a body that comes later": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n",
    "HTTP/1.0": OLD,
    "100-continue": b"GET / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n",
    "two": GET + GET,
    "line feeds": b"GET / HTTP/1.1\nhost: x\n\n",
    "an upgrade": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "a long one": b"GET / HTTP/1.1\r\nhost: x\r\na: %b\r\n\r\n" % (b"a" * LONGEST),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "rubbish": b"rubbish\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
}


class App:
    """Notes what it is called with, and answers at once, or in a later turn of the loop."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(copy.deepcopy(scope))
        path = scope["path"]
        if path == "/later":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if path != "/unread":
            self.bodies.append((await receive())["body"])
        scope["headers"].append((b"x-seen", b"1"))
        scope["state"]["seen"] = scope["asgi"]["seen"] = True
        scope["path"] = "/seen"
        body = f"{len(self.scopes)} {path}".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Worker:
    """The connections of one worker, and what its parser is fed with."""

    def __init__(
        self, protocol: Any = HttpToolsProtocol, limits: Limits | None = None, **options: Any
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.app = App()
        self.connections: list[Any] = []
        config = Config(
            self.app,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            **options,
        )
        config.load()
        state = ConnectionsState(Scoreboard(1).row(0), OpenGate())
        state.limits = limits or state.limits
        self.factory = ProtocolFactory(
            movable(protocol), config=config, server_state=state, app_state={"pool": 1}, _loop=self.loop
        )

    def connect(self, **extra: object) -> Any:
        connection = self.factory()
        transport = FakeTransport(self.loop, **extra)  # type: ignore[arg-type]  # of any kind
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self.connections.append(connection)
        return connection

    def feed(self, connection: Any, data: bytes) -> None:
        async def feed() -> None:
            if not connection.transport.is_closing():
                connection.data_received(data)

        self.loop.run_until_complete(feed())

    def turn(self, times: int = 8) -> None:
        for _ in range(times):
            self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        for connection in self.connections:
            connection.transport.close()
        self.turn(40)
        self.loop.close()

    def ask(self, connection: Any, data: bytes = GET) -> bool:
        """Whether its head was known."""
        cycle = connection.cycle
        self.feed(connection, data)
        known = connection.cycle is not cycle and getattr(connection.cycle, "known", None) is not None
        self.turn()
        return known


@pytest.fixture(autouse=True)
def every_head_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it may be."""
    monkeypatch.setattr(known_heads, "EACH", 1)


@pytest.fixture
def worker() -> Iterator[Worker]:
    with installed(Scoreboard(1).row(0)):
        made = Worker()
        yield made
        made.close()


def test_uvicorn_begins_a_request_as_it_did() -> None:
    """Otherwise no head is known: then look what is new in a scope, and on what it depends."""
    worker = Worker()
    connection = worker.factory._make()
    connection.on_message_begin()
    worker.close()
    assert connection.scope.keys() == AT_BEGIN


@pytest.mark.parametrize("head", [GET, LAST, HEAD, EMPTY])
def test_what_has_come_before_is_known(worker: Worker, head: bytes) -> None:
    assert [worker.ask(worker.connect(), head) for _ in range(4)] == [False, True, True, True]
    first, *others = worker.app.scopes
    assert others == [first] * 3
    assert [list(scope) for scope in others] == [list(first)] * 3  # in the same order, too


@pytest.mark.parametrize("head", NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_what_is_more_or_less_than_a_request_without_a_body_is_parsed(worker: Worker, head: bytes) -> None:
    assert not any(worker.ask(worker.connect(), head) for _ in range(4))
    assert not any(worker.ask(worker.connect(), head + GET) for _ in range(4))


@pytest.mark.parametrize("head", [GET, LATER, POST, HEAD, LAST])
def test_a_cycle_has_a_slot_for_all_that_it_is_given(worker: Worker, head: bytes) -> None:
    """Otherwise it gets a dictionary of its own, which is slow."""
    for _ in range(2):
        connection = worker.connect()
        worker.ask(connection, head)
        assert connection.cycle.response_complete
        assert not vars(connection.cycle)


def test_a_connection_whose_heads_are_known_has_no_parser(worker: Worker) -> None:
    for _ in range(2):
        worker.ask(worker.connect())
    connection = worker.connect()
    assert worker.ask(connection)
    assert connection.parser is None
    worker.ask(connection, POST)
    assert connection.parser is not None
    assert worker.ask(connection)
    assert connection.transport.written.count(b"200 OK") == 3


def test_what_depends_on_the_connection_is_that_connections(worker: Worker) -> None:
    for _ in range(2):
        worker.ask(worker.connect())
    connection = worker.connect(sslcontext=object())
    connection.client, connection.server = ("192.0.2.1", 9), ("192.0.2.2", 443)
    assert worker.ask(connection)
    scope = worker.app.scopes[-1]
    assert (scope["client"], scope["server"], scope["scheme"]) == (
        ("192.0.2.1", 9),
        ("192.0.2.2", 443),
        "https",
    )


def test_the_body_of_an_earlier_request_is_no_head(worker: Worker) -> None:
    """The response may be complete before its request's body has come, which looks like a head."""
    for _ in range(3):
        worker.ask(worker.connect())
    connection = worker.connect()
    upload = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(GET)
    worker.ask(connection, upload)
    assert not worker.ask(connection)  # the body
    assert len(worker.app.scopes) == 4
    assert not worker.ask(connection)  # uvicorn does not say that the body is complete
    assert worker.ask(connection)
    assert len(worker.app.scopes) == 6


def test_the_second_half_of_a_head_is_no_head(worker: Worker) -> None:
    for _ in range(3):
        worker.ask(worker.connect())
    connection = worker.connect()
    worker.ask(connection, b"POST / HTTP/1.1\r\nhost: x\r\nx: ")
    assert not worker.ask(connection)  # the rest of a field, whose head ends with it


def test_line_breaks_are_no_request(worker: Worker) -> None:
    for _ in range(4):
        assert not worker.ask(worker.connect(), END)
    connection = worker.connect()
    assert not worker.ask(connection)
    for _ in range(4):
        assert not worker.ask(connection, END)
    assert len(worker.app.scopes) == 1


def test_what_the_app_has_seen_already_is_not_learned(worker: Worker) -> None:
    """A loop may run the first step of a task as soon as it is made; the app may have changed its scope."""

    def begins_at_once(cycle: Any) -> None:
        cycle.begin()
        cycle._count(200)

    for _ in range(4):
        connection = worker.connect()
        connection._run_app = begins_at_once
        connection.data_received(GET)
        assert connection.cycle.known is None


def test_it_is_heard_as_any_other_bytes(worker: Worker) -> None:
    connection = worker.connect()
    worker.ask(connection)
    connection.heard = False
    assert connection.rests_until > 0
    connection._run_app = lambda _: None
    worker.feed(connection, GET)
    assert connection.cycle.known is not None
    assert connection.heard
    assert connection.rests_until == 0


@pytest.mark.parametrize("behind", [b"junk\r\n\r\n", GET, GET + GET, POST, b"x" * 1000])
def test_what_follows_a_last_request_is_nobodys(worker: Worker, behind: bytes) -> None:
    """So it is where the last request was parsed: its response comes, and nothing else."""
    seen = []
    for _ in range(3):
        connection = worker.connect()
        worker.feed(connection, LATER_LAST)
        for _ in range(3):
            worker.feed(connection, behind)
        worker.turn()
        seen.append((connection.transport.written.count(b"HTTP/1.1 200"), connection.transport.is_closing()))
    assert connection.cycle.known is not None
    assert seen == [(1, True)] * 3
    assert {scope["path"] for scope in worker.app.scopes} == {"/later"}


def test_bodies_do_not_count_as_heads_that_are_not_known(worker: Worker) -> None:
    worker.ask(worker.connect())
    heads = worker.connections[0].heads
    connection = worker.connect()
    worker.ask(connection, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    before = heads._misses
    for size in (10, LONGEST, LONGEST + 1, 65536) * TRIAL:
        worker.feed(connection, b"x" * size)
    assert heads._misses == before
    assert not heads.rests


def test_a_task_that_cannot_be_made_is_answered_as_where_the_head_is_parsed(worker: Worker) -> None:
    def fails(_: Any) -> None:
        raise MemoryError

    written = []
    for _ in range(2):
        connection = worker.connect()
        connection._run_app = fails
        worker.ask(connection)
        written.append(connection.transport.written)
        worker.ask(worker.connect())
    assert written[0] == written[1]
    assert written[0].startswith(b"HTTP/1.1 400")


def test_nothing_stays_of_the_request_of_which_it_was_learned(worker: Worker) -> None:
    class Large:
        """What an app keeps in its state as long as a request lasts."""

    connection = worker.connect()
    worker.feed(connection, GET)
    state = connection.cycle.scope["state"]
    state["large"] = large = Large()
    worker.turn()
    assert worker.ask(connection)
    kept = weakref.ref(large)
    del state, large
    worker.app.scopes.clear()
    gc.collect()
    assert kept() is None


def test_what_another_request_expected_is_not_sent(worker: Worker) -> None:
    for _ in range(2):
        worker.ask(worker.connect())
    connection = worker.connect()
    worker.ask(connection, NOT_KNOWN["100-continue"])
    assert worker.ask(connection)
    assert connection.transport.written.count(b"100 Continue") == 1


@pytest.mark.parametrize("begun", [b"\r", GET + GET[:9]])
def test_behind_the_beginning_of_another_one_it_is_parsed(worker: Worker, begun: bytes) -> None:
    for _ in range(2):
        worker.ask(worker.connect())
    connection = worker.connect()
    worker.ask(connection, begun)
    assert not worker.ask(connection)


class Timers:
    """A loop's."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, Any]] = []

    def call_later(self, delay: float, call: Any) -> None:
        self.armed.append((delay, call))


def test_it_remembers_no_more_than_it_has_room_for() -> None:
    heads, known = KnownHeads(Timers()), Known({"asgi": {}, "headers": []}, keep_alive=True)
    for number in range(KNOWN + 1):
        heads.learn(b"%d" % number, known)
    assert heads.get(b"0") is None
    assert heads.get(b"1") is not None
    assert heads.get(b"%d" % KNOWN) is not None


def test_it_learns_some_of_the_heads_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_heads, "EACH", EACH)
    heads = KnownHeads(Timers())
    assert [heads.is_to_learn() for _ in range(TRIAL)].count(True) == TRIAL // EACH


@pytest.mark.parametrize(
    ("hits", "pays"), [(0, False), (TRIAL // 4, False), (TRIAL // 2, True), (1000, True)]
)
def test_it_does_not_look_for_heads_while_few_are_known(hits: int, pays: bool) -> None:
    timers = Timers()
    heads = KnownHeads(timers)
    for _ in range(2):
        heads.hits = hits
        for _ in range(TRIAL):
            assert not heads.rests
            heads.is_to_learn()
        assert heads.rests is not pays
        assert heads.hits == 0
        if not pays:
            [(delay, go_on)] = timers.armed
            assert delay == PAUSE
            timers.armed.clear()
            go_on()
            assert not heads.rests
    assert not timers.armed


def test_while_it_does_not_look_all_is_parsed(worker: Worker) -> None:
    worker.ask(worker.connect())
    assert worker.ask(worker.connect())
    worker.connections[0].heads.rests = True
    assert not worker.ask(worker.connect())
    assert worker.app.scopes == [worker.app.scopes[0]] * 3


class Listens(HttpToolsProtocol):
    """A user's own, which looks at each URL."""

    def on_url(self, url: bytes) -> None:
        super().on_url(url)


class Extends(HttpToolsProtocol):
    """A user's own, or one of a later version of uvicorn, with more in a scope."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {}


@pytest.mark.parametrize("protocol", [Listens, Extends])
def test_who_begins_a_request_in_another_way_parses_it(protocol: Any) -> None:
    worker = Worker(protocol)
    assert not any(worker.ask(worker.connect()) for _ in range(4))
    worker.close()


def test_where_uvicorn_is_asked_for_more_it_parses(worker: Worker) -> None:
    limited = Worker(limit_concurrency=100)
    assert not any(limited.ask(limited.connect()) for _ in range(4))
    assert limited.app.scopes
    limited.close()


# --- with and without


UNREAD = b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
UNUSUAL = ("100-continue", "line feeds", "an upgrade", "no host", "a tunnel")
PIECES = [GET, HEAD, LAST, EMPTY, POST, OLD, GET + GET, GET + GET[:9], GET + b"\r", GET[:9], GET[9:], b"\r",
          b"\r\n", END, b"body", b"junk\r\n\r\n", LATER, LATER_LAST, UNREAD,
          *(NOT_KNOWN[name] for name in UNUSUAL)]  # fmt: skip
STEPS = st.lists(st.sampled_from([*range(len(PIECES)), "turn", "turn", "next"]), max_size=30)


@contextmanager
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def outcome(steps: list[Any], *, without: bool) -> Any:
    """What the app has seen, each client got, and the log says, of pieces that come on connections one after
    the other."""
    with pytest.MonkeyPatch.context() as patch, installed(Scoreboard(1).row(0)), logged() as lines:
        if without:
            patch.setattr(factory, "AT_BEGIN", set())
        worker = Worker()
        assert hasattr(worker.connect(), "heads") is not without
        for head in (GET, HEAD, LAST, EMPTY, LATER, LATER_LAST):
            worker.ask(worker.connect(), head)
        connections = [worker.connect()]
        for step in steps:
            if step == "next":
                connections.append(worker.connect())
            elif step == "turn":
                worker.turn()
            else:
                worker.feed(connections[-1], PIECES[step])
        worker.turn(40)
        seen = [(it.transport.written, it.transport.is_closing(), it.phase) for it in connections]
        worker.close()
        return worker.app.scopes, worker.app.bodies, seen, lines


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_nobody_can_tell_whether_a_head_was_known(steps: list[Any]) -> None:
    assert outcome(steps, without=False) == outcome(steps, without=True)
