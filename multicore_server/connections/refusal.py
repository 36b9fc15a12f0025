"""The answer to a request that is refused before the app is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus


class Refusing:
    """In the place of a cycle among pipelined requests: refuses its request when those before it are
    answered."""

    def __init__(self, refuse: Callable[[], None]) -> None:
        self._refuse = refuse

    async def run_asgi(self, app: object) -> None:
        self._refuse()


class Deaf:
    """In the place of a parser: takes what follows a connection's last request, and reports nothing."""

    def feed_data(self, data: bytes) -> None:
        """Do nothing."""


DEAF = Deaf()


def refusal(status: HTTPStatus, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the whole response; it is the last of its connection."""
    body = f"{status.phrase}\n".encode()
    headers = [
        *(field for field in default_headers if field[0].lower() != b"connection"),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b"%s: %s" % field for field in headers)]
    return b"\r\n".join([*lines, b"", body])
