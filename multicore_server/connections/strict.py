"""Makes uvicorn's HTTP protocols strict: they enforce RFC 9112 and the limits in the settings.

Sizes are checked as the bytes arrive. If uvicorn and the RFC read a request differently, the RFC counts:
trailers are never headers, only what uvicorn upgrades is an upgrade, and there is one Host.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

from h11 import IDLE, Data
from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.begin import BeginningHttpTools
from multicore_server.connections.chunks import check_chunks
from multicore_server.connections.http10 import for_http_1_0
from multicore_server.connections.lingering import linger
from multicore_server.connections.refusal import refusal
from multicore_server.connections.target import SLASH, is_target
from multicore_server.ipc.identity import refused


class Refused(Exception):  # noqa: N818 - it ends a request, and is no error of the program
    """Raised inside a parser's callback; the protocol's ``refusal`` says why."""


INVALID = "Invalid HTTP request received."  # uvicorn's words
_FIELDS = "its header is too large (limit_request_fields, limit_request_field_size)"
WHY = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "its body is above limit_request_body",
    HTTPStatus.REQUEST_URI_TOO_LONG: "its request line is too long (limit_request_line)",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: _FIELDS,
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "it is not HTTP/1",
}


class StrictProtocol:
    """Mixed into a protocol of uvicorn's, below what lets its connections move."""

    refusal = HTTPStatus.BAD_REQUEST
    heard = True  # bytes have come since the last sweep
    flowed = True  # the client has taken so many bytes since the last sweep that the app may go on
    head: Any = ()  # the scope at the last sweep, if a head was to be completed then
    since = 0.0  # of a sweep: that head has begun, or nothing of a body has come since then
    stuck_since = 0.0  # of a sweep: nothing was taken since then
    unsent = 0  # bytes, at the last sweep
    body_size = 0  # bytes of the body that have come, where they are limited
    server_state: Any
    transport: Any
    cycle: Any
    phase: int  # 0: it rests between requests
    idle: Any
    scope: Any
    headers: Any
    flow: Any
    loop: Any
    client: Any
    logger: Any
    connection_lost: Any

    def refuse(self, status: HTTPStatus) -> None:
        """Answer with an error, if no response is in the way, and close when the client has read it."""
        transport, cycle = self.transport, self.cycle
        if transport.is_closing():
            return
        answered = cycle is None or cycle.response_complete
        if not (answered or (cycle.scope is self.scope and not cycle.response_started)):
            transport.close()
            return
        transport.write(refusal(status, self.server_state.default_headers))
        self.end_lingering(status.phrase)

    def end_lingering(self, why: str) -> None:
        """Close when the client has read what was sent to it; nothing more is read of it."""
        if linger(self.transport, self.loop, self.server_state.lingering):
            self.connection_lost(ConnectionAbortedError(why))  # its transport is another protocol's

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for what its parser, or a check of ours within it, refuses; it has written its
        line of the log."""
        if self.refusal in WHY:
            self.log_refusal(self.refusal)
        self.refuse(self.refusal)

    def turn_down(self, status: HTTPStatus) -> None:
        """Refuse what uvicorn has not refused, with a line of the log."""
        self.log_refusal(status)
        self.refuse(status)

    def log_refusal(self, status: HTTPStatus) -> None:
        if status in WHY:
            self.logger.warning("%s", refused(self.client, status, WHY[status]))
        else:
            self.logger.warning(INVALID)

    def resume_writing(self) -> None:
        self.flowed = True
        super().resume_writing()  # type: ignore[misc]  # of the protocol

    def check_head(self, line: int) -> None:
        """Raises Refused where a complete head is not within the limits; ``line`` is its request line's
        length, without the line's end, as gunicorn counts it."""
        limits, size = self.server_state.limits, line + 2
        if limits.line and line > limits.line:
            self._raise(HTTPStatus.REQUEST_URI_TOO_LONG)
        if limits.fields and len(self.headers) > limits.fields:
            self._raise(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        for name, value in self.headers:
            length = len(name) + len(value) + 4  # ": " and the line's end
            size += length
            if (limits.field_size and length > limits.field_size) or size > limits.head:
                self._raise(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def check_body(self) -> None:
        """Raises Refused where the body is announced to be above its limit."""
        self.body_size = 0
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self.server_state.limits.body:
                self._raise(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def count_body(self, size: int) -> None:
        self.body_size += size
        if self.body_size > self.server_state.limits.body:
            self._raise(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def check_version(self, version: str) -> None:
        """Raises Refused for what is not HTTP/1 (the parsers let HTTP/0.9 and HTTP/2.0 through)."""
        if not version.startswith("1."):
            self._raise(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)

    def check_target(self, method: str, target: bytes) -> None:
        if not is_target(method, target):
            self._raise(HTTPStatus.BAD_REQUEST)

    def _raise(self, status: HTTPStatus) -> None:
        self.refusal = status
        raise Refused(status.phrase)

    @property
    def awaits_head(self) -> bool:
        """Whether the client is to send a head, or the rest of one, now."""
        raise NotImplementedError


class StrictHttpTools(StrictProtocol):
    url = b""  # also where line breaks alone have come
    parser: Any
    make_parser: Any
    expect_100_continue: bool
    progress = False  # a head was completed, or a part of a body has come, in this call of `data_received`
    size = 0  # bytes of this call
    unfinished = 0  # bytes of a head, or of what stands between the parts of a body, before this call
    hosts = 0  # Host fields of this head
    replayed: Any = None  # the headers of a request whose upgrade is not for us
    handle_websocket_upgrade: Any
    _before: Any  # the cycle before that request
    _should_upgrade: Any
    _unset_keepalive_if_required: Any
    _unsupported_upgrade_warning: Any
    _begin_by_uvicorn: Any  # its on_headers_complete
    begin: Any
    _take: Any  # uvicorn's on_body
    _complete_message: Any  # its on_message_complete

    def data_received(self, data: bytes) -> bool:
        """In place of uvicorn's. Returns whether the parser has taken all of it."""
        self.heard = True
        self.progress = False
        self.size = len(data)
        self._unset_keepalive_if_required()
        try:
            (self.parser or self.make_parser()).feed_data(data)
        except HttpParserError:
            self._on_error()
        except HttpParserUpgrade as exc:
            self._on_pause(data, exc)
        else:
            if not self.progress:
                self._count_unfinished()
            return True
        return False

    def _on_error(self) -> None:
        self.turn_down(self.refusal)

    def _on_pause(self, data: bytes, pause: HttpParserUpgrade) -> None:
        """The parser has stopped behind a head that offers an upgrade."""
        while self.replayed is not None:
            self._unsupported_upgrade_warning()
            data = self._head_once_more() + data[pause.args[0] :]
            self.cycle = self._before
            try:
                self.make_parser().feed_data(data)  # the old one may take that message for the last
            except HttpParserError:
                self._on_error()
                return
            except HttpParserUpgrade as exc:
                pause = exc
            else:
                return
        if self._should_upgrade():
            self.handle_websocket_upgrade()
        else:
            self._unsupported_upgrade_warning()

    def _head_once_more(self) -> bytes:
        version = self.parser.get_http_version().encode()
        fields = [b"%s: %s" % field for field in self.replayed if field[0] != b"upgrade"]
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
        return b"\r\n".join([line, *fields, b"", b""])

    def _count_unfinished(self) -> None:
        self.unfinished += self.size
        if self.unfinished > self.server_state.limits.head:
            in_line = self.awaits_head and 2 * len(self.url) > self.unfinished
            uri, fields = HTTPStatus.REQUEST_URI_TOO_LONG, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.turn_down(uri if in_line else fields)

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        if headers is None:  # a trailer
            return
        name, value = name.lower(), value.rstrip()  # RFC 9110 5.5; llhttp skips what stands before it
        headers.append((name, value))
        if name == b"host":
            self.hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        self.progress = True
        limits, headers = self.server_state.limits, self.headers
        if self.size + self.unfinished > limits.least or len(headers) > limits.most_fields:
            self.check_head(len(self.parser.get_method()) + len(self.url) + len(b"  HTTP/1.1"))
        version = self.parser.get_http_version()
        if version != "1.1":
            self.check_version(version)
        if self.url[0] != SLASH:
            self.check_target(self.parser.get_method().decode("ascii"), self.url)
        if self.hosts != 1 and (self.hosts or version != "1.0"):  # RFC 9112 3.2
            self._raise(HTTPStatus.BAD_REQUEST)
        self.hosts = self.unfinished = 0
        if limits.body is not None:
            self.check_body()
        if self.parser.should_upgrade():
            self._on_upgrade(headers)
            return
        if self.replayed is not None:
            headers[:], self.replayed = self.replayed, None
        self.begin(version)
        self.headers = None  # what follows are trailers
        if version == "1.0":
            self.cycle.__class__ = for_http_1_0(self.cycle.__class__)
            self.cycle.keep_alive = self.parser.should_keep_alive()

    def _on_upgrade(self, headers: list[tuple[bytes, bytes]]) -> None:
        """httptools takes a message that offers an upgrade for its last, without a body, and raises
        HttpParserUpgrade. Where we do not upgrade, `_on_pause` feeds the head again, without the offer."""
        method = self.parser.get_method()
        self.check_target(method.decode("ascii"), self.url)  # CONNECT has no path
        if self._should_upgrade() or method == b"CONNECT":
            self._begin_by_uvicorn()
        else:
            self.replayed = list(headers)
            self._before, self.cycle = self.cycle, _ANSWERED

    def on_body(self, body: bytes) -> None:
        self.progress = True
        self.unfinished = 0
        if self.server_state.limits.body is not None:
            self.count_body(len(body))
        self._take(body)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        # Answered before it was complete: uvicorn leaves it as if more were to come.
        if cycle is not None and cycle.response_complete and cycle.scope is self.scope:
            cycle.more_body = False
        else:
            self._complete_message()

    @property
    def awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.scope is not self.scope


class _Answered:
    """In place of a cycle while the end of a message is reported that is not its end."""

    response_complete = True
    scope = None


_ANSWERED = _Answered()


class StrictByEvents(StrictProtocol):
    """For a parser that calls nothing, and is asked for events: h11's, and zttp's."""

    conn: Any
    root_path: str
    _feed: Any  # uvicorn's data_received
    _handle: Any  # uvicorn's handle_events
    _asks_upgrade: Any  # uvicorn's _should_upgrade

    size = 0  # bytes of this call of `data_received`
    begun = 0  # bytes at most that have come of the next head

    @property
    def _target(self) -> bytes:
        path: bytes = self.scope["raw_path"].removeprefix(self.root_path.encode("ascii"))  # of uvicorn's
        query: bytes = self.scope["query_string"]
        return path + b"?" + query if query else path

    @property
    def awaits_head(self) -> bool:
        cycle = self.cycle
        return cycle is None or (cycle.response_complete and not cycle.more_body)


def by_events(form: type[StrictByEvents], protocol: Any) -> Any:
    """``protocol`` made strict by ``form``."""
    own = {
        "_feed": protocol.data_received,
        "_handle": protocol.handle_events,
        "_asks_upgrade": protocol._should_upgrade,
    }
    return type(f"Strict{protocol.__name__}", (form, protocol), own)


class StrictH11(StrictByEvents):
    def data_received(self, data: bytes) -> None:
        self.heard = True
        self.size = len(data)
        self.begun += self.size
        self._feed(data)
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and self.conn.their_state is IDLE:
            cycle.more_body = False  # uvicorn leaves it as if more were to come

    def handle_events(self) -> None:
        try:
            self._handle()
        except Refused:
            self.turn_down(self.refusal)

    def _should_upgrade(self) -> bool:
        """uvicorn asks this for each request, between its head and its cycle."""
        limits = self.server_state.limits
        self.check_version(self.scope["http_version"])
        self.check_target(self.scope["method"], self._target)
        names = [name for name, _ in self.headers]
        if b"transfer-encoding" in names:
            if b"content-length" in names:  # RFC 9112 6.1: it may be smuggling
                self._raise(HTTPStatus.BAD_REQUEST)
            check_chunks(self.conn)
        if self.begun > limits.least or len(self.headers) > limits.most_fields:
            self.check_head(len(self.scope["method"]) + len(self._target) + len(b"  HTTP/1.1"))
        self.begun = self.size  # no more of the next head than this can have come with the end of this one
        if limits.body is not None:
            self.check_body()
            self.conn.next_event = self._next_event
        upgrade: bool = self._asks_upgrade()
        return upgrade

    def _next_event(self) -> Any:
        event = type(self.conn).next_event(self.conn)
        if isinstance(event, Data):
            self.count_body(len(event.data))
        return event

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled; h11 hints at the status of what is above its own limit."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 0) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            in_line = self.awaits_head and b"\n" not in self.conn.trailing_data[0]
            uri, fields = HTTPStatus.REQUEST_URI_TOO_LONG, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.refusal = uri if in_line else fields
        super().send_400_response(msg)


def strict(protocol: Any) -> Any:
    """The strict form of one of uvicorn's two HTTP protocols, or of a subclass."""
    if issubclass(protocol, H11Protocol):
        return by_events(StrictH11, protocol)
    begin = protocol.on_headers_complete
    own = {
        "_begin_by_uvicorn": begin,
        "_take": protocol.on_body,
        "_complete_message": protocol.on_message_complete,
    }
    if begin is not HttpToolsProtocol.on_headers_complete:  # a subclass with one of its own
        own["begin"] = lambda connection, _: begin(connection)
    return type(f"Strict{protocol.__name__}", (StrictHttpTools, BeginningHttpTools, protocol), own)
