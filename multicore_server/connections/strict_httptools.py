"""Makes uvicorn's protocol on httptools strict."""

from __future__ import annotations

from collections import deque
from functools import partial
from http import HTTPStatus
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.begin import BeginningHttpTools
from multicore_server.connections.http10 import for_http_1_0
from multicore_server.connections.refusal import DEAF, Refusing
from multicore_server.connections.strict import StrictProtocol
from multicore_server.connections.target import SLASH


class StrictHttpTools(StrictProtocol):
    url = b""  # also where line breaks alone have come
    parser: Any
    make_parser: Any
    pipeline: Any  # the newest request is on the left
    app: Any
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

    def refuse(self, status: HTTPStatus) -> None:
        """When the requests before it are answered, where some are not."""
        cycle = self.cycle
        is_own = cycle is not None and cycle.scope is self.scope
        if cycle is None or cycle.response_complete or (is_own and not self.pipeline):
            super().refuse(status)
            return
        self.pipeline = self.pipeline or deque()
        if is_own:
            self.pipeline.popleft()
        self.pipeline.appendleft((Refusing(partial(super().refuse, status)), self.app))
        self.parser = DEAF
        self.flow.pause_reading()  # until the next response is complete

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


def strict_httptools(protocol: Any) -> Any:
    """The strict form of uvicorn's protocol on httptools, or of a subclass."""
    begin = protocol.on_headers_complete
    own = {
        "_begin_by_uvicorn": begin,
        "_take": protocol.on_body,
        "_complete_message": protocol.on_message_complete,
    }
    if begin is not HttpToolsProtocol.on_headers_complete:  # a subclass with one of its own
        own["begin"] = lambda connection, _: begin(connection)
    return type(f"Strict{protocol.__name__}", (StrictHttpTools, BeginningHttpTools, protocol), own)
