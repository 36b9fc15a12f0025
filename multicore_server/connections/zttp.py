"""uvicorn's zttp protocol for HTTP/1.1, strict and movable.

zttp does not say whether its buffer has bytes behind the request that it has reported, so this module works
it out. If it does not know, the connection stays where it is until its next request.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from multicore_server.connections.protocol import MovableProtocol
from multicore_server.connections.state import CLOSE
from multicore_server.connections.strict import Refused
from multicore_server.connections.strict_events import StrictByEvents

HEAD_ENDS = b"\r\n\r\n"
CHUNKED = (b"transfer-encoding", b"chunked")  # as uvicorn adds it
MOST_BEHIND = 64 * 1024  # bytes of further requests that are read while the app has one


class Tail:
    """What has come behind the request that was reported last: ``bytes``, or None where that is not known."""

    __slots__ = ("bytes", "in_chunks", "rest")

    def __init__(self) -> None:
        self.bytes: bytes | None = b""
        self.rest = 0  # bytes of a body of known length that are to come
        self.in_chunks = False

    def add(self, data: bytes) -> None:
        """Before the parser has it."""
        if self.in_chunks or self.bytes is None:
            return
        behind = data[self.rest :] if self.rest else data
        self.rest -= len(data) - len(behind)
        self.bytes += behind

    def begin(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The parser has reported a request with these headers: its head is none of the tail any more."""
        if self.in_chunks:
            self.in_chunks, self.bytes = False, None
        if self.bytes is None:
            return
        behind = self.bytes[self.bytes.find(HEAD_ENDS) + len(HEAD_ENDS) :]
        fields = dict(headers)
        self.in_chunks = b"transfer-encoding" in fields
        length = 0 if self.in_chunks else int(fields.get(b"content-length", 0))
        self.bytes = b"" if self.in_chunks else behind[length:]
        self.rest = max(length - len(behind), 0)

    def end(self, last: bytes) -> None:
        """The request is complete; ``last`` is what has come last. Chunks end with an empty line, and so does
        a whole request behind them: zttp would have reported that one."""
        if self.in_chunks or self.bytes is None:
            self.in_chunks = False
            self.bytes = b"" if last.endswith(HEAD_ENDS) else None

    @property
    def is_empty(self) -> bool:
        """Whether it is known that nothing has come."""
        return self.bytes == b"" and not self.in_chunks


class MovableZttp(MovableProtocol):
    tail: Tail

    @property
    def idle(self) -> bool:
        cycle = self.cycle
        answered = cycle is None or (cycle.response_complete and not cycle.more_body)
        return answered and self.ends_with_cycle

    @property
    def ends_with_cycle(self) -> bool:
        return not self.tail.bytes

    @property
    def is_movable(self) -> bool:
        return self.tail.is_empty and super().is_movable


class StrictZttp(StrictByEvents):
    """The parser is strict by itself; this has the limits, and the answers that say which was passed."""

    _tail: Tail | None = None
    _wrappers: Collection[Any] = ()

    @property
    def tail(self) -> Tail:
        if self._tail is None:
            self._tail = Tail()
        return self._tail

    def data_received(self, data: bytes) -> None:
        self.heard = True
        self.size = len(data)
        self.begun += self.size
        tail = self.tail
        tail.add(data)
        try:
            self._feed(data)
        except Refused:
            self.turn_down(self.refusal)
            return
        cycle = self.cycle
        if cycle is not None and not cycle.more_body:
            tail.end(data)
        behind = len(tail.bytes or b"")
        if self.awaits_head and behind > self.server_state.limits.head:
            self.turn_down(self._too_long())
        elif behind > MOST_BEHIND:
            self.flow.pause_reading()  # uvicorn reads on when the response is complete

    def _too_long(self) -> HTTPStatus:
        in_line = b"\n" not in (self.tail.bytes or b"")
        return HTTPStatus.REQUEST_URI_TOO_LONG if in_line else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE

    def handle_events(self, event: Any) -> None:
        try:
            self._handle(event)
        except Refused:
            self.turn_down(self.refusal)

    def _should_upgrade(self) -> bool:
        """uvicorn asks this for each request, between its head and its cycle."""
        limits, scope = self.server_state.limits, self.scope
        self.tail.begin(self.headers)
        self.check_target(scope["method"], self._target)
        if self.begun > limits.least or len(self.headers) > limits.most_fields:
            self.check_head(len(scope["method"]) + len(self._target) + len(b"  HTTP/1.1"))
        if scope["http_version"] == "1.0":
            self._wrap(Http10)
        self.begun = self.size  # no more of the next head than this can have come with the end of this one
        if limits.body is not None:
            self.check_body()
            self._wrap(CountedEvents, self.count_body)
        upgrade: bool = self._asks_upgrade()
        return upgrade

    def _wrap(self, wrapper: Any, *more: Any) -> None:
        """Once in a connection. A client speaks one version of HTTP."""
        if wrapper not in self._wrappers:
            self._wrappers = {*self._wrappers, wrapper}
            self.conn = wrapper(self.conn, *more)

    def send_400_response(self, msg: str) -> None:
        """Called while zttp's error is handled; it has limits of its own for a head: 16 and 64 KiB."""
        if self.awaits_head and "size limit" in str(sys.exc_info()[1]):
            self.refusal = self._too_long()
        super().send_400_response(msg)


class _Wrapped:
    """A connection of zttp's, whose class cannot be derived from."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


class Http10(_Wrapped):
    """The client knows no chunks, and asks for keep-alive by name: a body of unknown length ends with the
    connection."""

    _out = b""
    _ends_by_close = False

    def send_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        names = {name.lower() for name, _ in headers}
        self._ends_by_close = CHUNKED[0] in names
        if self._ends_by_close:
            others = [field for field in headers if field[0].lower() not in (CHUNKED[0], CLOSE[0])]
            headers = [*others, CHUNKED, CLOSE]
        elif b"connection" not in names and not self._conn.should_close():
            headers = [*headers, (b"connection", b"keep-alive")]
        self._conn.send_response(status, headers)
        self._out = self._conn.data_to_send()
        if self._ends_by_close:
            self._out = self._out.replace(b"%b: %b\r\n" % CHUNKED, b"", 1)

    def send_data(self, data: bytes) -> None:
        if self._ends_by_close:
            self._out += data
        else:
            self._conn.send_data(data)

    def end_message(self) -> None:
        self._conn.end_message()
        if self._ends_by_close:
            self._conn.data_to_send()  # the last chunk

    def data_to_send(self) -> bytes:
        out, self._out = self._out, b""
        sent: bytes = out + self._conn.data_to_send()
        return sent


class CountedEvents(_Wrapped):
    """The bytes of bodies are counted as they pass."""

    def __init__(self, conn: Any, count: Any) -> None:
        super().__init__(conn)
        self._count = count

    def next_event(self) -> Any:
        return self._counted(self._conn.next_event())

    def receive_event(self, data: bytes) -> Any:
        return self._counted(self._conn.receive_event(data))

    def _counted(self, event: Any) -> Any:
        if type(event).__name__ == "Data":
            self._count(len(event.data))
        return event
