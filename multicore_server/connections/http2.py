"""uvicorn's HTTP/2, on zttp: its connections cannot move, but they end gently.

At the first moment without a stream in progress, GOAWAY tells the client which stream was the last. Streams
that the client has begun since then are not read, and the client repeats them in another connection. If
streams are in progress for long, the client is told to begin no more of them (RFC 9113 6.8), and all streams
that are on their way are answered. This does not happen at once, because clients made with hyper-h2 (httpx,
for example) then give up their streams in progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from multicore_server.connections.inboxes import Kind
from multicore_server.connections.lingering import linger
from multicore_server.connections.protocol import IN_HAND, UNREAD, MovableProtocol
from multicore_server.connections.strict import Refused, StrictProtocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CYCLES = "uvicorn.protocols.http.zttp_h2_impl"  # the module of its requests: several at once in a connection
# Length 8, type 7, no flags, stream 0; the highest stream there is; NO_ERROR.
BUSY = 5.0  # seconds that a connection has for such a moment, while its worker drains
HUSH = 0.05  # seconds in which its client takes the last responses, before it hears that they were the last
GOING_AWAY = b"\0\0\x08\x07\0\0\0\0\0" + b"\x7f\xff\xff\xff" + bytes(4)


class Head(StrictProtocol):
    """The head of a request, checked by the same limits as those of HTTP/1; a zttp event for uvicorn."""

    def __init__(self, server_state: Any, event: Any) -> None:
        self.server_state = server_state
        self._event = event
        self.headers = [(name.lower(), value) for name, value in event.headers]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)

    def is_refused(self) -> bool:
        event, limits = self._event, self.server_state.limits
        try:
            self.check_head(len(event.method) + len(event.target) + len(b"  HTTP/1.1"))
            if limits.body is not None:
                self.check_body()
        except Refused:
            return True
        return False


class Http2(MovableProtocol):
    """Mixed into uvicorn's protocol. Its requests count as in progress one by one, by their cycles."""

    cycle = None
    told = False  # that it is to open no further streams
    drains_since = 0.0  # monotonic
    heard_at = 0.0  # monotonic
    closes = False  # when all is sent
    conn: Any
    flush: Callable[[], None]
    cycles: dict[int, Any]
    app: Any
    _handle_request: Any  # uvicorn's
    _events: Any  # uvicorn's

    @property
    def idle(self) -> bool:
        """A response that is complete may wait in the parser, until its client takes more."""
        return not self.cycles and not self.conn.has_pending_send()

    @property
    def ends_with_cycle(self) -> bool:
        return False

    @property
    def is_awaited(self) -> bool:
        cycles = self.cycles.values()
        return any(not (each.more_body or each.response_complete or each.disconnected) for each in cycles)

    can_leave = is_movable = False  # streams are state of this process

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self.moved:
            _expect_bytes(self)

    def data_received(self, data: bytes) -> None:
        state = self.server_state
        if state.wake is not None:
            state.wake()
        self.finish()
        self.heard_at = time.monotonic()
        self._receive(data)
        if self.closes:
            self._close_connection()
        if state.progressed is not None:
            state.progressed(self)

    def handle_request(self, event: Any) -> None:
        own, head = self.app, Head(self.server_state, event)
        refused = head.is_refused()
        if refused:
            self.app = _refusing(head.refusal)
        try:
            self._handle_request(head)
        finally:
            self.app = own
        cycle = self.cycles.get(event.stream_id)
        if cycle is None:  # answered already: a loop with eager tasks
            return
        cycle.refused = refused  # its body is thrown away
        if event.end_stream:  # uvicorn 0.54 waits for one more event, which zttp has not
            cycle.more_body = False
            cycle.message_event.set()

    def events(self) -> Iterator[Any]:
        """uvicorn's, without the parts of bodies that are too long: their streams are reset."""
        most = self.server_state.limits.body
        for event in self._events():
            if most is None or type(event).__name__ != "Data" or self._has_room(event, most):
                yield event

    def _has_room(self, event: Any, most: int) -> bool:
        cycle = self.cycles.get(event.stream_id)
        if cycle is None or cycle.refused:
            return cycle is None
        cycle.body_size = getattr(cycle, "body_size", 0) + len(event.data)
        if cycle.body_size <= most:
            return True
        cycle.abort_stream()
        cycle.message_event.set()
        return False

    def on_response_complete(self, stream: int) -> None:  # type: ignore[override]  # as uvicorn's
        self._complete(stream)
        self._answered(self.server_state)

    def announce_end(self) -> None:
        now = time.monotonic()
        self.drains_since = self.drains_since or now
        if not self.told and now - self.drains_since > BUSY and not self.transport.is_closing():
            self.told = True
            self.transport.write(GOING_AWAY)

    def end(self) -> None:
        self.answered_at = time.monotonic()
        if self.idle and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(HUSH, self.close)

    def close(self) -> None:
        self._close_connection()

    def _close_connection(self) -> None:
        """In place of uvicorn's, which cuts off what waits in the parser."""
        transport = self.transport
        if transport.is_closing():
            return
        self.closes = not self.idle
        if self.closes:
            return
        self.conn.close()  # GOAWAY
        self.flush()
        if self.server_state.draining and linger(transport, self.loop, self.server_state.lingering):
            self.connection_lost(ConnectionAbortedError("closed after GOAWAY"))
        else:
            transport.close()

    def timeout_keep_alive_handler(self) -> None:
        limit = self.server_state.limits.send_timeout
        if self.idle:
            super().timeout_keep_alive_handler()
        elif limit and time.monotonic() - self.heard_at >= limit:
            self.transport.abort()
        else:
            self._keep_alive()


def _refusing(status: HTTPStatus) -> Any:
    """An app that answers so."""
    body = f"{status.phrase}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


class Sniffing(MovableProtocol):
    """Mixed into uvicorn's protocol that finds out which HTTP a client speaks: by TLS, or by its first bytes.

    Until then the connection is movable as any other. Then it is given the protocol of that HTTP.
    """

    cycle = None
    buffer: bytes
    config: Any
    app_state: Any
    forms: tuple[Any, Any]  # the protocols of HTTP/1.1 and HTTP/2
    raw: Any = None  # its transport, without a spool
    known: Any = None  # the protocol that it has become
    told_then: tuple[Callable[[Any], None], ...] = ()

    @property
    def idle(self) -> bool:
        return not self.buffer

    @property
    def ends_with_cycle(self) -> bool:
        return not self.buffer

    def connection_made(self, transport: Any) -> None:
        self.timeout_keep_alive = self.config.timeout_keep_alive
        self.timeout_keep_alive_task = None
        self.raw = transport
        super().connection_made(transport)
        if not self.moved and transport.get_extra_info("sslcontext"):
            secure = transport.get_extra_info("ssl_object")
            self._become(2 if secure is not None and secure.selected_alpn_protocol() == "h2" else 1)

    def _made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)
        if self.handed is not Kind.KEPT_ALIVE:
            _expect_bytes(self)

    def _lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def _receive(self, data: bytes) -> None:
        self.buffer += data
        if not PREFACE.startswith(self.buffer[: len(PREFACE)]):
            self._become(1)
        elif len(self.buffer) >= len(PREFACE):
            self._become(2)

    def _become(self, version: int) -> None:
        """It speaks this HTTP: its protocol begins with a new connection, and gets what has come."""
        state, buffer, self.buffer = self.server_state, self.buffer, b""
        self.lose_spool()
        self._end_timer()
        self.connections.discard(self)
        self.finish()
        state.gate.went(self)
        given = {"config": self.config, "server_state": state, "app_state": self.app_state}
        protocol = self.forms[version - 1](**given, _loop=self.loop)
        protocol.handed = Kind.NEW
        self.row[IN_HAND] += 1
        self.row[UNREAD] += 1
        protocol.stays = self.stays
        self.raw.set_protocol(protocol)
        protocol.connection_made(self.raw)
        self.known = protocol
        for tell in self.told_then:
            tell(protocol)
        if buffer:
            protocol.data_received(buffer)

    def once_known(self, tell: Callable[[Any], None]) -> None:
        """Call this with the protocol that it becomes."""
        if self.known is None:
            self.told_then = (*self.told_then, tell)
        else:
            tell(self.known)

    def _end_timer(self) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        if timer is not None:
            timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        if not self.has_unread:
            self.transport.close()


def _expect_bytes(connection: Any) -> None:
    """A client that sends nothing at all has as long as for a head."""
    if patience := connection.server_state.limits.header_timeout:
        expire = connection.timeout_keep_alive_handler
        connection.timeout_keep_alive_task = connection.loop.call_later(patience, expire)
