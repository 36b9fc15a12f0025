"""Makes uvicorn's HTTP protocols strict: they enforce RFC 9112 and the limits in the settings.

Sizes are checked as the bytes arrive. If uvicorn and the RFC read a request differently, the RFC counts:
trailers are never headers, only what uvicorn upgrades is an upgrade, and there is one Host.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from multicore_server.connections.lingering import linger
from multicore_server.connections.refusal import refusal
from multicore_server.connections.target import is_target
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
