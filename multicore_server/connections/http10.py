"""Serves HTTP/1.0 clients: they do not know chunks, and they ask for keep-alive by name."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def for_http_1_0(cycle: Any) -> Any:
    """A request and response of uvicorn's whose client knows no chunks and asks for keep-alive by name."""

    class Http10(cycle):  # type: ignore[misc]  # a class that is chosen when it runs
        keep_alive: bool
        ends_by_close = False
        answers_whole = False

        def send(self, message: Any) -> Any:
            if message["type"] == "http.response.start" and not self.response_started:
                message = self._framed(message)
            elif self.ends_by_close and not self.response_complete:
                self.expected_content_length += len(message.get("body", b""))
            return super().send(message)

        def _framed(self, message: Any) -> Any:
            given = list(message.get("headers", ()))  # they may be an iterator
            headers = [
                (name, value)
                for name, value in given
                if name.lower() not in (b"transfer-encoding", b"connection")
            ]
            names = {name.lower() for name, _ in headers}
            closes = any(
                name.lower() == b"connection" and b"close" in value.lower()
                for name, value in (*self.default_headers, *given)
            )
            bodiless = self.scope["method"] == "HEAD" or message["status"] in (204, 304)
            if b"content-length" not in names and not bodiless:
                self.ends_by_close, self.chunked_encoding = True, False
            self.keep_alive = self.keep_alive and not closes and not self.ends_by_close
            headers.append((b"connection", b"keep-alive" if self.keep_alive else b"close"))
            return {**message, "headers": headers}

    Http10.__name__ = cycle.__name__
    return Http10
