"""Makes uvicorn's protocols strict whose parser is asked for events: h11's, and zttp's."""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any

from h11 import IDLE, Data

from multicore_server.connections.chunks import check_chunks
from multicore_server.connections.strict import Refused, StrictProtocol


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


def strict_h11(protocol: Any) -> Any:
    """The strict form of uvicorn's protocol on h11, or of a subclass."""
    return by_events(StrictH11, protocol)
