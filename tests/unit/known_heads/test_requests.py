"""Heads that have come before: the requests that come of them are those that a parser would have made."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.known_heads import AT_BEGIN, END, LONGEST, TRIAL
from tests.unit.fake_transport import GET, LAST, POST
from tests.unit.known_heads.served import EMPTY, HEAD, LATER, LATER_LAST, NOT_KNOWN, Worker


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
    assert worker.ask(connection)
    assert len(worker.app.scopes) == 5


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
