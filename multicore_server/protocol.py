"""uvicorn's HTTP protocols, made to end gently: a request that has begun to arrive is answered.

uvicorn's ``shutdown()`` closes a connection whose request has arrived in part, and says nothing to a client
whose response is the last. These subclasses know what has begun to arrive, and announce the end in the
response to the last of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

CLOSE = (b"connection", b"close")


class State(ServerState):
    """What the connections of a worker share. ``on_answered`` is called after each HTTP response."""

    def __init__(self, on_answered: Callable[[], None]) -> None:
        super().__init__()
        self.on_answered = on_answered
        self.draining = False

    @property
    def last_headers(self) -> list[tuple[bytes, bytes]]:
        """The default headers of a connection's last response."""
        headers = self.default_headers
        return headers if CLOSE in headers else [*headers, CLOSE]


class Gentle:
    """Mixed into a protocol of uvicorn's, whose ``cycle`` is one request and its response."""

    answered = 0  # responses
    answered_at = 0.0
    server_state: Any
    transport: Any
    cycle: Any

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has arrived that is not answered yet."""
        raise NotImplementedError

    @property
    def ends_with_cycle(self) -> bool:
        """Whether nothing of a further request has arrived behind ``cycle``."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]  # of the protocol that this is mixed into
        if self.server_state.draining:
            self.announce_end()

    def on_response_complete(self) -> None:
        self.answered += 1
        self.answered_at = time.monotonic()
        super().on_response_complete()  # type: ignore[misc]  # as above
        self.server_state.on_answered()
        if self.server_state.draining:
            self.announce_end()

    def announce_end(self) -> None:
        """Let the response to the last request that has begun to arrive be the last of this connection."""
        cycle, state = self.cycle, self.server_state
        if cycle is not None and not cycle.response_started:
            cycle.default_headers = state.last_headers if self.ends_with_cycle else state.default_headers


class GentleHttpTools(Gentle):
    begun = 0  # requests, by their first byte
    scope: Any

    def on_message_begin(self) -> None:
        self.begun += 1
        if self.cycle is not None:  # pipelined: that one was not the last
            self.cycle.default_headers = self.server_state.default_headers
        super().on_message_begin()  # type: ignore[misc]  # as above

    @property
    def idle(self) -> bool:
        return self.begun == self.answered

    @property
    def ends_with_cycle(self) -> bool:
        # A request's scope is made at its first byte, its cycle after its head.
        return self.cycle.scope is self.scope


class GentleH11(Gentle):
    conn: Any

    @property
    def idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.conn.trailing_data[0]

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
