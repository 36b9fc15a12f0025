"""uvicorn's zttp protocol: what is known of the bytes that lie in its parser."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicore_server import hosts
from multicore_server.connections.factory import movable
from multicore_server.connections.http2 import Http2
from multicore_server.connections.protocol import MovableProtocol
from multicore_server.connections.zttp import Http10, Tail
from tests.support.parsers import HAS_ZTTP

zttp = pytest.importorskip("zttp")
pytestmark = pytest.mark.skipif(not HAS_ZTTP, reason="this uvicorn has no zttp protocol")

PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SIZED = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nfour\r\n\r\n!"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n"


class Peer:
    """Feeds a parser as uvicorn does; the app answers each request when it is complete."""

    def __init__(self) -> None:
        self.conn: Any = zttp.Connection(zttp.SERVER)
        self.tail = Tail()
        self.complete = True  # the request that was reported last

    def feed(self, data: bytes) -> None:
        self.tail.add(data)
        self._take(self.conn.receive_event(data))
        if self.complete:
            self.tail.end(data)

    def _take(self, event: Any) -> None:
        while event is not zttp.NEED_DATA:
            if isinstance(event, zttp.Request):
                self.tail.begin(event.headers.to_list(lowercase_names=True))
                self.complete = event.end_stream
            elif isinstance(event, zttp.EndOfMessage):
                self.complete = True
            if self.complete:
                self.conn.send_response(204, [])
                self.conn.end_message()
                self.conn.start_next_cycle()
            event = self.conn.next_event()

    def holds_nothing(self) -> bool:
        """The parser, asked in a way that it does not survive."""
        try:
            return self.complete and self.conn.receive_event(b"") is zttp.CONNECTION_CLOSED
        except zttp.RemoteProtocolError:
            return False


@st.composite
def parts(draw: st.DrawFn) -> list[bytes]:
    """Some requests, the last of them perhaps cut off, in parts of any size."""
    data = b"".join(draw(st.lists(st.sampled_from([PLAIN, SIZED, CHUNKED]), min_size=1, max_size=4)))
    data = data[: draw(st.sampled_from([len(data), len(data), len(data) - 30, len(data) - 1]))]
    cuts = sorted(draw(st.sets(st.integers(1, len(data)), max_size=4)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(cuts)]


@settings(deadline=None, max_examples=400)
@given(parts())
def test_what_is_said_to_be_empty_is(data: list[bytes]) -> None:
    peer = Peer()
    for part in data:
        peer.feed(part)
    empty = peer.complete and peer.tail.is_empty
    assert not empty or peer.holds_nothing()


@pytest.mark.parametrize("requests", [[PLAIN], [SIZED], [CHUNKED], [PLAIN + SIZED, PLAIN], [SIZED, CHUNKED]])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_it_is_known_of_requests_one_after_the_other(requests: list[bytes], size: int) -> None:
    peer = Peer()
    for data in requests:
        for start in range(0, len(data), size):
            peer.feed(data[start : start + size])
        assert size == 1 or peer.tail.is_empty  # chunks one byte at a time are not followed


def test_bytes_of_a_further_request_are_seen() -> None:
    peer = Peer()
    peer.feed(PLAIN + PLAIN[:5])
    assert peer.tail.bytes == PLAIN[:5]
    peer.feed(PLAIN[5:])
    assert peer.tail.is_empty


def test_one_that_is_not_known_is_known_again_later() -> None:
    peer = Peer()
    peer.feed(CHUNKED + PLAIN[:5])
    assert not peer.tail.is_empty
    peer.feed(PLAIN[5:])
    assert peer.tail.is_empty


# --- HTTP/1.0


def answered(head: bytes, headers: list[tuple[bytes, bytes]], *parts: bytes) -> tuple[bytes, bool]:
    conn: Any = zttp.Connection(zttp.SERVER)
    conn.receive_event(head)
    old = Http10(conn)
    old.send_response(200, headers)
    for part in parts:
        old.send_data(part)
    old.end_message()
    return old.data_to_send(), old.should_close()


def test_http_1_0_gets_no_chunks() -> None:
    said, last = answered(b"GET / HTTP/1.0\r\n\r\n", [(b"Transfer-Encoding", b"chunked")], b"one", b"two")
    assert said == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nonetwo"
    assert last


def test_http_1_0_is_kept_alive_by_name() -> None:
    head = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    said, last = answered(head, [(b"content-length", b"3")], b"one")
    assert said == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\none"
    assert not last


# --- the contract


def test_the_installed_uvicorn_has_every_member() -> None:
    assert [str(each) for each in hosts.missing(hosts.ZTTP)] == []


@pytest.mark.parametrize(
    "place", ["zttp_impl:ZttpProtocol", "zttp_h2_impl:ZttpH2Protocol", "auto_zttp_impl:AutoZttpProtocol"]
)
def test_its_protocols_are_ours(place: str) -> None:
    from pkgutil import resolve_name

    theirs = resolve_name(f"uvicorn.protocols.http.{place}")
    assert issubclass(movable(theirs), MovableProtocol)


def test_one_that_lacks_a_member_stays_uvicorns_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvicorn.protocols.http.zttp_impl import ZttpProtocol

    monkeypatch.delattr(ZttpProtocol, "_should_upgrade")
    movable.cache_clear()
    try:
        assert movable(ZttpProtocol) is ZttpProtocol
    finally:
        movable.cache_clear()


def test_what_comes_over_http_2_ends_the_rest_of_its_worker() -> None:
    done: list[Any] = []
    connection: Any = Http2.__new__(Http2)
    connection.server_state = SimpleNamespace(wake=lambda: done.append("wake"), progressed=None)
    connection._receive = done.append
    connection.data_received(b"frames")
    assert done == ["wake", b"frames"]
