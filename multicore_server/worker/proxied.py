"""What a trusted proxy says of the client: uvicorn's middleware, for those requests alone that need it."""

from __future__ import annotations

import contextlib
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

FORWARDED = frozenset({b"x-forwarded-proto", b"x-forwarded-for"})


class Proxied:
    """An ASGI app around another. As in gunicorn, the peer of a unix socket is trusted.

    That trust is for the nearest hop alone: the addresses that it names are judged by the list. A request
    without these headers does not pay for the middleware.
    """

    def __init__(self, app: Any, trusted: Any) -> None:
        self.app = app
        self._by_address = ProxyHeadersMiddleware(_nothing, trusted)
        self._by_unix_socket = ProxyHeadersMiddleware(_nothing, trusted)
        trusted_hosts: Any = _AnyPeer(self._by_unix_socket.trusted_hosts)
        self._by_unix_socket.trusted_hosts = trusted_hosts

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        self.apply(scope)
        return self.app(scope, receive, send)

    def apply(self, scope: Any) -> None:
        """Write into the scope what the middleware does, before it calls an app: it waits for nothing."""
        for name, _ in scope.get("headers", ()):
            if name in FORWARDED:
                through = self._by_unix_socket if scope["client"] is None else self._by_address
                changing = through(scope, _nothing, _nothing)
                with contextlib.suppress(StopIteration):
                    changing.send(None)
                return


class _AnyPeer:
    """uvicorn's list of trusted hosts, for the middleware's question about its peer: any is trusted."""

    def __init__(self, hosts: Any) -> None:
        self._hosts = hosts

    def __contains__(self, host: object) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hosts, name)  # what walks the chain asks the list itself


async def _nothing(*_: object) -> Any:
    """In place of an app."""
