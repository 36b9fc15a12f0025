"""A fake uvicorn for the tests of the WSGI bridge: a scope, a receive() and a send()."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from multicore_server.wsgi.bridge import WSGIBridge

OK = "200 OK"
TEXT = [("Content-Type", "text/plain")]
App = Callable[[dict[str, Any], Any], Iterable[bytes]]


def scope(method: str = "GET", **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
        "client": ("10.0.0.9", 4321),
        "root_path": "",
        "path": "/a",
        "raw_path": b"/a",
        "query_string": b"",
        "headers": [(b"host", b"example.org")],
    }
    return {**base, **changes}


class Client:
    """What uvicorn is to the bridge: a request's body in pieces, then silence until it leaves."""

    def __init__(self, *pieces: bytes, leaves_after: int | None = None) -> None:
        self.pieces = list(pieces)
        self.leaves_after = leaves_after  # this many body messages
        self.messages: list[Any] = []
        self.received = 0
        self.left = asyncio.Event()
        self.gate: asyncio.Event | None = None  # send() waits for it, as for a slow client

    async def receive(self) -> Any:
        self.received += 1
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.messages.append(dict(message))
        bodies = [m for m in self.messages if m["type"] == "http.response.body"]
        if self.leaves_after is not None and len(bodies) >= self.leaves_after:
            self.left.set()

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", True)


def call(app: App, request: dict[str, Any] | None = None, client: Client | None = None, **how: Any) -> Client:
    async def main() -> Client:
        served = client or Client()
        await WSGIBridge(app, **how)(request or scope(), served.receive, served.send)
        return served

    return asyncio.run(main())


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response(OK, TEXT)
    return [b"hello"]


class Closing:
    """An iterable with close(), which notes where it ran."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks = iter(blocks)
        self.closed = 0
        self.thread: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self.blocks)

    def close(self) -> None:
        self.closed += 1
        self.thread = threading.get_ident()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()


def streaming(result: Iterable[bytes], headers: list[tuple[str, str]] = TEXT, status: str = OK) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return result

    return app


both = pytest.mark.parametrize("threads", [1, 2])
