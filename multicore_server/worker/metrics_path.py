"""`metrics_path`: the monitor's metrics on the app's own port.

The worker passes the request on to the monitor and the answer back. It never merges metrics itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any, NamedTuple

PATIENCE = 5.0  # seconds that the monitor has for its answer
MOST_AT_ONCE = 2  # requests of a worker to the monitor: many clients do not use up its connections
MAX_ANSWER = 2**24  # bytes
MAX_HEADER = 1024  # bytes of a header that is passed on

_ASKED = frozenset({b"accept", b"accept-encoding"})
_ANSWERED = frozenset({
    b"content-type", b"content-encoding", b"vary", b"cache-control", b"x-content-type-options"
})  # fmt: skip

Headers = list[tuple[bytes, bytes]]


class MonitorResponse(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class MetricsPath:
    """An ASGI app that answers GET and HEAD of ``path`` with what the monitor says at ``socket_path``.

    ``path`` is as in ``scope["path"]``, so with a ``root_path`` in front. Everything else is the ``app``'s:
    a plain function, so that its requests pay for one comparison and not for a coroutine.
    """

    def __init__(self, app: Any, path: str, socket_path: str) -> None:
        self.app = app
        self.path = path
        self.socket_path = socket_path
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        if self.takes(scope):
            return self._answer(scope, send)
        passed: Awaitable[None] = self.app(scope, receive, send)
        return passed

    def takes(self, scope: Any) -> bool:
        """Whether a request is not the app's."""
        return scope.get("path") == self.path and scope.get("method") in ("GET", "HEAD")

    async def _answer(self, scope: Any, send: Any) -> None:
        try:
            status, headers, body = await asyncio.wait_for(self._ask_in_turn(scope), PATIENCE)
        # The monitor is not there, is busy, or ended in the middle.
        except (OSError, ValueError, asyncio.TimeoutError):
            status, body = 503, b"the monitor does not answer: it is starting or has failed, see the log\n"
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _ask_in_turn(self, scope: Any) -> MonitorResponse:
        async with self._turns:
            return await self._ask(scope)

    async def _ask(self, scope: Any) -> MonitorResponse:
        reader, writer = await asyncio.open_unix_connection(sock=_connected(self.socket_path))
        try:
            writer.write(_question(scope["headers"]))
            return _parsed(await _whole(reader))
        finally:
            writer.transport.abort()


def _connected(path: str) -> socket.socket:
    """Connect without the loop: if the backlog is full, this fails at once, and a loop would wait."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _question(headers: Headers) -> bytes:
    """The request to the monitor.

    HTTP/1.0, so that the answer comes in one piece and ends with the connection. HEAD is asked as GET: the
    answer to HEAD needs the length of the body.
    """
    asked = [
        b"%s: %s\r\n" % (name, value)
        for name, value in headers
        if name in _ASKED and len(value) <= MAX_HEADER and not {*b"\r\n\0"} & {*value}
    ]
    return b"".join([b"GET /metrics HTTP/1.0\r\nhost: monitor\r\n", *asked, b"\r\n"])


async def _whole(reader: asyncio.StreamReader) -> bytes:
    parts, size = [], 0
    while part := await reader.read(2**16):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise ValueError("the answer is too long")
    return b"".join(parts)


def _parsed(answer: bytes) -> MonitorResponse:
    """Raises ValueError for what is no complete answer."""
    head, end, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    if not end or int(dict(headers).get(b"content-length", b"-1")) != len(body):
        raise ValueError("the answer is cut short")
    return MonitorResponse(int(status[9:12]), [it for it in headers if it[0] in _ANSWERED], body)
