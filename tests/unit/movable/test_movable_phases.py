"""What a connection counts and announces in each of its phases."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from asyncio.sslproto import _SSLProtocolTransport
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from uvicorn.logging import TRACE_LOG_LEVEL

from multicore_server.connections.factory import movable
from multicore_server.connections.inboxes import Kind
from multicore_server.connections.inline import InlineGate
from multicore_server.connections.protocol import (
    ASKED,
    RESTING,
    WAITING,
    MovableH11,
    MovableHttpTools,
)
from multicore_server.connections.spool import Spools
from multicore_server.worker.drain import hang_up, is_handshaking, shut
from tests.unit.fake_transport import GET, POST, Connections, FakeTransport
from tests.unit.movable.connecting import Build, Siblings, leave, sharing

# --- phases


def test_the_phases_of_a_connection(build: Build) -> None:
    server = build()
    connection = server.connect()
    assert (connection.phase, server.counts[:2]) == (WAITING, (1, 1))
    server.receive(connection, GET[:10])
    assert (connection.phase, server.counts[:2]) == (ASKED, (1, 0))
    server.receive(connection, GET[10:])
    assert connection.is_awaited
    server.answer()
    assert (connection.phase, server.counts[:2]) == (RESTING, (0, 0))
    assert connection.idle
    server.receive(connection, GET)
    assert (connection.phase, server.counts[:2]) == (ASKED, (1, 0))


def test_a_connection_of_which_uvicorn_logs_each_step(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(TRACE_LOG_LEVEL, "uvicorn.error"):
        server = build()
        connection = server.connect()
        for _ in range(2):
            server.receive(connection, GET)
            server.answer()
        assert (connection.phase, server.counts[:2]) == (RESTING, (0, 0))
        connection.connection_lost(None)
    assert [it.getMessage().rpartition(" - ")[2] for it in caplog.records] == [
        "HTTP connection made",
        "HTTP connection lost",
    ]


def test_a_kept_alive_connection_that_was_taken_is_not_in_hand_and_has_its_timer(build: Build) -> None:
    server = build()
    connection = server.connect(Kind.KEPT_ALIVE)
    assert (connection.phase, server.counts[:2]) == (RESTING, (0, 0))
    assert connection.timeout_keep_alive_task is not None
    server.receive(connection, GET)
    # One timer stays for as long as an httptools connection is kept alive.
    assert connection.timeout_keep_alive_task is None or connection.rests_until == 0


@pytest.mark.parametrize("reset", [None, ConnectionResetError()])
def test_the_timer_of_a_kept_alive_connection_ends_with_it(build: Build, reset: Exception | None) -> None:
    server = build()
    connection = server.connect(Kind.KEPT_ALIVE)
    timer = connection.timeout_keep_alive_task
    connection.transport.lose(reset)
    server.turn()
    assert timer.cancelled()


def test_one_that_a_sibling_gets_on_arrival_is_not_counted_here(build: Build) -> None:
    server, siblings = build(), Siblings()
    server.state.dispatch = siblings.dispatch
    connection = server.connect()
    server.turn()
    assert connection.moved
    assert siblings.handed == [(Kind.NEW, 7)]
    assert server.counts == (0, 0, 0)
    assert not server.state.connections


def test_a_body_that_comes_after_its_response_is_not_in_hand(build: Build) -> None:
    server = build()
    connection = server.connect()
    server.receive(connection, POST[:-2])
    server.answer()
    assert server.counts[:2] == (0, 0)
    sharing(server)
    assert not leave(connection), "the rest of the body would begin a sibling's request"
    server.receive(connection, POST[-2:])
    assert server.counts[:2] == (0, 0)
    assert leave(connection)


def test_what_is_no_request_ends_the_connection_and_its_count(build: Build, caplog: Any) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    server = build()
    connection = server.connect()
    server.receive(connection, b"\x16\x03\x01 no request\r\n\r\n")
    assert connection.transport.is_closing()
    assert server.counts == (0, 0, 0)


def test_pipelined_requests_are_in_hand_until_the_last_is_answered(build: Build) -> None:
    server = build()
    connection = server.connect()
    server.receive(connection, GET + GET)
    server.answer()
    assert server.counts[:2] == (1, 0)
    assert not connection.ends_with_cycle or not connection.idle
    server.answer()
    assert server.counts[:2] == (0, 0)


def test_a_websocket_is_no_request_in_hand(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    server = build(ws="wsproto")
    connection = server.connect()
    upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    upgrade += b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    server.receive(connection, upgrade)
    assert server.counts[:2] == (0, 0)
    assert is_handshaking(connection.transport.protocol)


# --- inline


@pytest.fixture
def inline() -> Iterator[Callable[..., Connections]]:
    """Connections to an inline app; ``is_quick`` is as of `InlineGate`."""
    loop = asyncio.new_event_loop()
    made: list[Connections] = []

    def make(is_quick: Callable[[int], bool] = lambda _: False) -> Connections:
        made.append(Connections(loop, "httptools", InlineGate(is_quick)))
        return made[-1]

    yield make
    for server in made:
        server.end()
    loop.close()


def test_while_a_response_is_awaited_new_connections_are_set_aside(
    inline: Callable[..., Connections],
) -> None:
    server = inline()
    siblings = sharing(server)
    before = server.connect(descriptor=1)
    asking = server.connect(descriptor=2)
    assert siblings.handed == []
    server.receive(asking, GET)
    assert before.moved
    assert server.connect(descriptor=3).moved
    assert siblings.handed == [(Kind.NEW, 1), (Kind.NEW, 3)]
    server.answer()
    assert server.state.gate.is_open
    assert not server.connect().moved


def test_what_has_gone_to_a_sibling_is_leaving_until_its_descriptor_is_closed(
    inline: Callable[..., Connections],
) -> None:
    server = inline()
    sharing(server)
    before = server.connect(descriptor=1)
    asking = server.connect(descriptor=2)
    asking.data_received(GET)
    assert server.state.gate.leaving == {before}
    server.turn()
    assert server.state.gate.leaving == set()


def test_few_new_connections_wait_for_a_quick_app(inline: Callable[..., Connections]) -> None:
    server = inline(lambda waiting: waiting <= 1)
    siblings = sharing(server)
    server.connect(descriptor=1)
    server.receive(server.connect(descriptor=2), GET)
    assert siblings.handed == []
    server.connect(descriptor=3)
    assert siblings.handed == [(Kind.NEW, 3)]


def test_a_client_that_pipelines_and_leaves_does_not_shut_the_gate(
    inline: Callable[..., Connections],
) -> None:
    server = inline()
    connection = server.connect()
    server.receive(connection, GET + GET)
    connection.transport.lose(ConnectionResetError())
    server.turn()
    server.answer()  # of a cycle that has not heard of it
    assert server.state.gate.is_open


def test_a_request_whose_successor_has_begun_to_arrive_is_awaited(inline: Callable[..., Connections]) -> None:
    server = inline()
    connection = server.connect()
    server.receive(connection, GET + POST[:-2])
    assert connection.is_awaited


# --- around it


def test_each_of_uvicorns_protocols_has_its_movable_form(build: Build) -> None:
    assert issubclass(build().protocol, (MovableHttpTools, MovableH11))


def test_another_protocol_stays_as_it_is() -> None:
    class Other(asyncio.Protocol):
        pass

    assert movable(Other) is Other


class Closing:
    """A connection that is not of the movable ones."""

    def __init__(self) -> None:
        self.told = 0

    def shutdown(self) -> None:
        self.told += 1


def test_what_cannot_move_is_told(build: Build) -> None:
    other = Closing()
    shut(other)
    assert other.told == 1
    connection = build().connect()
    shut(connection)
    assert connection.transport.is_closing()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"handshake_complete": False}, True),
        ({"handshake_complete": True}, False),
        ({"handshake_completed_event": asyncio.Event()}, True),
        ({}, False),
    ],
)
def test_who_is_still_shaking_hands(names: dict[str, object], expected: bool) -> None:
    assert is_handshaking(type("WebSocket", (), names)()) is expected


def test_hanging_up_ends_what_a_tls_client_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.new_event_loop()
    with ours, theirs:
        transport = FakeTransport(loop, ssl_object=object(), unread=ours)
        transport._extra["socket"] = ours  # type: ignore[attr-defined]  # of asyncio's transports
        transport.unsent = 1
        hang_up(transport)
        theirs.send(b"x")
        transport.unsent = 0
        hang_up(transport)
        assert ours.recv(1) == b"x"
        ours.setblocking(False)
        assert ours.recv(1) == b"", "reading has ended"
    loop.close()


def test_hanging_up_what_asyncio_has_closed_twice_is_no_mistake() -> None:
    nothing: Any = None
    transport: Any = _SSLProtocolTransport(nothing, nothing)  # as it leaves itself: without its TLS protocol
    transport._closed = True
    hang_up(transport)


@pytest.mark.parametrize("known", [False, True])
def test_hanging_up_what_is_gone_is_no_mistake(known: bool) -> None:
    gone = socket.socket() if known else None
    loop = asyncio.new_event_loop()
    transport = FakeTransport(loop, ssl_object=object())
    transport._extra["socket"] = gone  # type: ignore[attr-defined]  # of asyncio's transports
    if gone is not None:
        gone.close()
    hang_up(transport)
    loop.close()


def test_hanging_up_what_has_lost_its_ssl_protocol_is_no_mistake() -> None:
    class Lost:
        def get_extra_info(self, name: str) -> object:
            raise AttributeError("'NoneType' object has no attribute '_get_extra_info'")

    hang_up(Lost())


@pytest.mark.parametrize("way", ["leaves", "is set aside", "is closed", "goes to a sibling on arrival"])
@pytest.mark.parametrize("spools", [None, Spools()], ids=["asgi", "wsgi"])
def test_what_has_gone_leaves_nothing_for_the_collector(
    build: Build, way: str, spools: Spools | None
) -> None:
    server = build()
    server.state.spools = spools
    siblings = sharing(server)
    server.turn()
    gc.collect()
    gc.disable()
    try:
        before = weakref.WeakSet[Any]()
        for _ in range(20):
            server.state.dispatch = siblings.dispatch if way.startswith("goes") else None
            connection = server.connect()
            before.add(connection)
            if way == "leaves":
                server.receive(connection, GET)
                server.answer()
                leave(connection)
            elif way == "is set aside":
                connection.set_aside()
            elif way == "is closed":
                connection.transport.close()
            del connection
            server.turn()
        assert len(before) == 0
    finally:
        gc.enable()


def test_plain_connections_are_not_hung_up(build: Build) -> None:
    connection = build().connect()
    hang_up(connection.transport)
    assert not connection.transport.is_closing()
