"""Checks every request to the monitor, and adds headers to every answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from multicore_server.monitor.allowed_hosts import AllowedHosts

Message: TypeAlias = MutableMapping[str, Any]  # ASGI's, which has no types of its own
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

PROBES = ("/healthz", "/readyz")
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
CLOSE = (b"connection", b"close")
_HAS_BODY = b"a body is not accepted here\n"
_MISDIRECTED = (
    b"the Host header names another server; use an IP address, "
    b"or add the name to metrics_hosts, see docs/settings.md\n"
)
_FULL = b"too many connections; only /healthz and /readyz are answered now\n"


class Gate:
    """Refuses a body with GET and HEAD, and a Host header that names another server.

    After any request with a body the connection ends: only a command's body is read. ``hosts`` are the names
    that the Host header may have (None: any). It is not checked for /healthz and /readyz, because a kubelet
    or a load balancer cannot always set it.
    """

    def __init__(self, app: App, hosts: AllowedHosts | None = None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        has_body = _has_body(scope)
        headers = [*HEADERS, CLOSE] if has_body else HEADERS

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if has_body and scope["method"] in ("GET", "HEAD"):
            await refuse(answer, 413, _HAS_BODY)
        elif not self._is_for_us(scope):
            await refuse(answer, 421, _MISDIRECTED)
        else:
            await self._app(scope, receive, answer)

    def _is_for_us(self, scope: Message) -> bool:
        if self._hosts is None or scope["path"] in PROBES:
            return True
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        return all(map(self._hosts.accept, given))


def probes_only(app: App) -> App:
    """Return the app for a connection above the limit: it answers one request for /healthz or /readyz."""

    async def restricted(scope: Message, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), CLOSE]
            await send(message)

        if scope["path"] in PROBES:
            await app(scope, receive, answer)
        else:
            await refuse(answer, 503, _FULL)

    return restricted


async def refuse(send: Send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _has_body(scope: Message) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
            return True
    return False
