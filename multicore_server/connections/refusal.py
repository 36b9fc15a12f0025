"""The answer to a request that is refused before the app is called."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus


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
