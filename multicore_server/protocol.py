"""uvicorn's HTTP protocols, made to end gently: a request that has begun to arrive is answered.

uvicorn's ``shutdown()`` closes a connection whose request has arrived in part, and says nothing to a client
whose response is the last. These subclasses know whether a connection is idle.
"""

from __future__ import annotations

import functools
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

CLOSE = (b"connection", b"close")


class State(ServerState):
    """What the connections of a worker share. ``on_answered`` is called after each HTTP response."""

    def __init__(self) -> None:
        super().__init__()
        self.on_answered: Any = None


class Gentle:
    """Mixed into a protocol of uvicorn's."""

    answered = 0
    server_state: Any
    cycle: Any
    transport: Any

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has arrived that is not answered yet."""
        raise NotImplementedError

    def on_response_complete(self) -> None:
        self.answered += 1
        super().on_response_complete()  # type: ignore[misc]  # of the protocol that this is mixed into
        if self.server_state.on_answered is not None:
            self.server_state.on_answered()

    def end_after_response(self) -> None:
        """Make the response in hand, and those that follow it, the last ones of this connection."""
        for cycle in (self.cycle, *(cycle for cycle, _ in getattr(self, "pipeline", ()))):
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = self.server_state.default_headers
            elif cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False


class GentleHttpTools(Gentle):
    begun = 0

    def on_message_begin(self) -> None:
        self.begun += 1
        super().on_message_begin()  # type: ignore[misc]  # as above

    @property
    def idle(self) -> bool:
        return self.begun == self.answered


class GentleH11(Gentle):
    conn: Any

    @property
    def idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.conn.trailing_data[0]


@functools.cache
def gentle(protocol: type) -> type:
    """The gentle form of one of uvicorn's HTTP protocols; any other class as it is."""
    if issubclass(protocol, H11Protocol):
        return type("GentleH11Protocol", (GentleH11, protocol), {})
    if hasattr(protocol, "on_message_begin"):
        return type("GentleHttpToolsProtocol", (GentleHttpTools, protocol), {})
    return protocol
