"""uvicorn's HTTP protocols, made to come and go gently.

A connection that arrives is placed with the least loaded worker. One that is idle can move to another
worker; where it cannot, a request that has begun to arrive is answered, and the response says that it is
the last. (uvicorn's own ``shutdown()`` closes a connection whose request has arrived in part, and says
nothing to a client whose response is the last.)
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from multicore_server.connections.inboxes import Kind

if TYPE_CHECKING:
    from multicore_server.server import Server

CLOSE = (b"connection", b"close")


class State(ServerState):
    """What the connections of a worker share."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.draining = False
        self.moving = False  # idle connections go to siblings
        self.asked = 0  # connections whose request awaits its response

    @property
    def last_headers(self) -> list[tuple[bytes, bytes]]:
        """The default headers of a connection's last response."""
        headers = self.default_headers
        return headers if CLOSE in headers else [*headers, CLOSE]


class Gentle:
    """Mixed into a protocol of uvicorn's, whose ``cycle`` is one request and its response."""

    handed: Kind | None = None  # how it came, if it was another worker's before
    moved = False  # it is another worker's now
    waiting = False  # it has been counted as in hand, but no byte of a request has come
    asked = False  # a request awaits its response
    answered_at = 0.0
    server_state: State
    connections: set[Any]
    loop: Any
    transport: Any
    cycle: Any
    timeout_keep_alive: float
    timeout_keep_alive_task: Any

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has arrived that is not answered yet."""
        raise NotImplementedError

    @property
    def ends_with_cycle(self) -> bool:
        """Whether nothing of a further request has arrived behind ``cycle``."""
        raise NotImplementedError

    # --- it comes ---

    def connection_made(self, transport: Any) -> None:
        server = self.server_state.server
        if self.handed is None and not server.keeps(transport):
            self.moved = True
            transport.abort()  # closes our descriptor only: a sibling has another
            return
        super().connection_made(transport)  # type: ignore[misc]  # of the protocol that this is mixed into
        if self.handed is Kind.KEPT_ALIVE:
            self.answered_at = time.monotonic()
            expire = self.timeout_keep_alive_handler  # type: ignore[attr-defined]  # as above
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, expire)
        else:
            self.waiting = True

    def connection_lost(self, exc: Exception | None) -> None:
        if self.moved:
            return
        super().connection_lost(exc)  # type: ignore[misc]  # as above
        self.finish()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        if not self.asked:
            self.asked = True
            self.server_state.asked += 1
            if not self.waiting:
                self.server_state.server.busier(1)
            self.waiting = False
        super().data_received(data)  # type: ignore[misc]  # as above
        if self.server_state.draining:
            self.announce_end()

    def on_response_complete(self) -> None:
        self.answered_at = time.monotonic()
        super().on_response_complete()  # type: ignore[misc]  # as above
        state = self.server_state
        if self.idle:
            self.finish()
            if state.moving:
                self.leave_soon()
        elif state.draining:
            self.announce_end()
        state.server.worker.on_answered()

    def finish(self) -> None:
        """Nothing is in hand here any more."""
        state = self.server_state
        if self.asked:
            self.asked = False
            state.asked -= 1
            state.server.busier(-1)
            state.server.relieved()
        elif self.waiting:
            self.waiting = False
            state.server.busier(-1)

    def handle_websocket_upgrade(self, *args: Any) -> None:
        super().handle_websocket_upgrade(*args)  # type: ignore[misc]  # as above
        self.finish()

    def announce_end(self) -> None:
        """Let the response to the last request that has begun to arrive be the last of this connection."""
        cycle, state = self.cycle, self.server_state
        if cycle is not None and not cycle.response_started and not self.can_leave:
            cycle.default_headers = state.last_headers if self.ends_with_cycle else state.default_headers

    # --- it goes ---

    @property
    def can_leave(self) -> bool:
        """Whether it may go to a sibling when it is idle: TLS keys are in this process's memory."""
        return self.server_state.moving and self.transport.get_extra_info("sslcontext") is None

    def leave_soon(self) -> None:
        """Go to a sibling before the next request is read."""
        if self.can_leave and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self.leave, True)

    def leave(self, paused: bool = False) -> bool:
        """Go to a sibling, if nothing of a request has come and nothing of a response is left to go."""
        transport = self.transport
        if self.moved or transport.is_closing():
            return False
        if not paused:
            transport.pause_reading()
        # A response may come before the request's body has.
        arriving = self.cycle is not None and self.cycle.more_body
        if self.idle and not arriving and not transport.get_write_buffer_size() and self._pass_on():
            return True
        transport.resume_reading()
        return False

    def _pass_on(self) -> bool:
        descriptor = self.transport.get_extra_info("socket").fileno()
        kind = Kind.KEPT_ALIVE if self.answered_at else Kind.NEW
        if not self.server_state.server.passes_on(kind, descriptor):
            return False
        self.moved = True
        self._unset_keepalive_if_required()  # type: ignore[attr-defined]  # as above
        self.connections.discard(self)
        self.finish()
        self.transport.abort()  # closes our descriptor only
        return True


class GentleHttpTools(Gentle):
    scope: Any
    pipeline: Any

    def on_message_begin(self) -> None:
        if self.server_state.draining and self.cycle is not None:  # pipelined: that one was not the last
            self.cycle.default_headers = self.server_state.default_headers
        super().on_message_begin()  # type: ignore[misc]  # as above

    @property
    def idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.pipeline and self.ends_with_cycle

    @property
    def ends_with_cycle(self) -> bool:
        # A request's scope is made at its first byte, its cycle after its head.
        return self.scope is (None if self.cycle is None else self.cycle.scope)


class GentleH11(Gentle):
    conn: Any

    @property
    def idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.ends_with_cycle

    @property
    def ends_with_cycle(self) -> bool:
        return not self.conn.trailing_data[0]


@functools.cache
def gentle(protocol: Any) -> Any:
    """The gentle form of one of uvicorn's HTTP protocols; any other class as it is."""
    if issubclass(protocol, H11Protocol):
        return type("GentleH11Protocol", (GentleH11, protocol), {})
    if hasattr(protocol, "on_message_begin"):
        return type("GentleHttpToolsProtocol", (GentleHttpTools, protocol), {})
    return protocol


def is_handshaking(connection: Any) -> bool:
    """Whether this is a WebSocket whose app has neither accepted nor refused it yet: a begun request."""
    if hasattr(connection, "handshake_complete"):
        return not connection.handshake_complete
    event = getattr(connection, "handshake_completed_event", None)
    return event is not None and not event.is_set()
