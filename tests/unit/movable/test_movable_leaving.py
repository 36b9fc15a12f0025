"""When a connection leaves for a sibling, and what it leaves behind."""

from __future__ import annotations

import pytest

from multicore_server.connections.dispatcher import KEPT
from multicore_server.connections.inboxes import Kind
from multicore_server.connections.leaving import send_idle
from tests.unit.fake_transport import GET, LAST, POST
from tests.unit.movable.connecting import Build, draining, leave, sharing

# --- leaving


def test_an_idle_connection_leaves_and_nothing_stays(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect(descriptor=9)
    server.receive(connection, GET)
    server.answer()
    assert leave(connection)
    server.turn()
    assert siblings.handed == [(Kind.KEPT_ALIVE, 9)]
    assert connection.transport.aborted, "its descriptor is closed without a TCP shutdown"
    assert connection.timeout_keep_alive_task is None
    assert server.counts == (0, 0, 0)
    siblings.handed.clear()
    assert send_idle([connection], server.state), "it has left"
    assert siblings.handed == []


def test_one_that_waits_for_its_first_request_leaves_as_new(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    assert leave(server.connect())
    assert siblings.handed == [(Kind.NEW, 7)]
    assert server.counts[:2] == (0, 0)


@pytest.mark.parametrize("begun", [GET[:5], GET, GET + GET[:5], POST[:-2]])
def test_one_that_has_begun_to_ask_stays(build: Build, begun: bytes) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect()
    server.receive(connection, begun)
    assert not leave(connection)
    assert siblings.handed == []


def test_one_whose_response_is_not_sent_in_full_stays(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect()
    connection.transport.blocked = True
    server.receive(connection, GET)
    server.answer()
    connection.leave_soon()
    assert not connection.transport.reading
    server.turn()
    assert siblings.handed == []
    assert connection.transport.reading, "it is served on"
    connection.transport.unsent = 0
    assert leave(connection)


def test_one_that_nobody_takes_is_served_on(build: Build) -> None:
    server = build()
    sharing(server, KEPT)
    connection = server.connect()
    connection.leave_soon()
    server.turn()
    assert connection.transport.reading
    assert server.counts[:2] == (1, 1)
    server.receive(connection, GET)
    server.answer()
    assert connection.transport.written.endswith(b"ok")


def test_one_that_a_thread_has_at_that_moment_is_served_on_when_it_is_left(build: Build) -> None:
    server = build()
    sharing(server, KEPT)
    connection = server.connect()
    connection.leave_soon()
    connection.claimed = True
    server.turn()
    assert not connection.transport.reading, "the thread may be about to send it"
    connection.claimed = False
    server.turn()
    assert connection.transport.reading


def test_one_that_a_thread_has_sent_is_left_alone(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect()
    connection.leave_soon()
    connection.claimed = True
    server.turn()
    connection.let_go()
    server.turn()
    assert siblings.handed == []
    assert not connection.transport.reading


def test_one_that_is_lost_on_its_way_stays_lost(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect()
    connection.leave_soon()
    connection.transport.lose(ConnectionResetError())
    server.turn()
    assert siblings.handed == []
    assert server.counts == (0, 0, 0)


def test_tls_never_leaves(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect(sslcontext=object())
    assert not connection.can_leave
    connection.leave_soon()
    connection.set_aside()
    server.turn()
    assert siblings.handed == []


def test_nothing_is_set_aside_from_a_connection_that_closes(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    connection = server.connect()
    connection.transport.close()
    connection.set_aside()
    assert siblings.handed == []


# --- the end of the worker


def test_the_response_that_is_the_last_says_so(build: Build) -> None:
    server = build()
    connection = server.connect()
    server.receive(connection, GET)
    draining(server)
    connection.announce_end()
    server.answer()
    assert b"connection: close" in connection.transport.written.lower()


def test_of_pipelined_requests_the_last_one_says_it(build: Build) -> None:
    server = build()
    connection = server.connect()
    server.receive(connection, GET)
    draining(server)
    connection.announce_end()
    server.receive(connection, GET)
    server.answer()
    assert b"connection: close" not in connection.transport.written.lower()
    server.answer()
    assert connection.transport.written.lower().count(b"connection: close") == 1
    assert connection.transport.written.count(b"ok") == 2


def test_a_response_says_nothing_where_its_connection_can_leave(build: Build) -> None:
    server = build()
    siblings = sharing(server)
    draining(server, moving=True)
    connection = server.connect()
    server.receive(connection, GET)
    connection.announce_end()
    server.answer()
    assert b"connection: close" not in connection.transport.written.lower()
    assert siblings.handed == [(Kind.KEPT_ALIVE, 7)]


def test_what_connects_while_the_worker_drains_has_its_time(build: Build) -> None:
    server = build()
    draining(server)
    assert server.connect().answered_at > 0


def test_a_response_after_a_client_said_close_ends_the_connection(build: Build) -> None:
    server = build()
    connection = server.connect()
    server.receive(connection, LAST)
    server.answer()
    assert connection.transport.is_closing()
    assert server.counts == (0, 0, 0)


def test_a_connection_that_is_closed_with_its_last_response_does_not_leave(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's TLS transport cannot be asked for anything any more when it is closed."""
    server = build()
    siblings = sharing(server)
    draining(server, moving=True)
    connection = server.connect()

    def gone(*_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute '_get_extra_info'")

    server.receive(connection, LAST)
    close = connection.transport.close

    def close_for_good() -> None:
        close()
        connection.transport.get_extra_info = gone

    connection.transport.close = close_for_good
    server.answer()
    assert siblings.handed == []
    assert connection not in server.state.connections
    assert caplog.text == ""
