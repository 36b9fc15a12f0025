"""Requests, responses and routes: as much of a web framework as the monitor's few pages need.

A framework would take more memory than everything else that the monitor does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias
from urllib.parse import parse_qsl

from multicore_server.monitor.gate import App, Message, Receive, Send

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

TEXT = "text/plain; charset=utf-8"
NOT_FOUND = "not found; / lists the addresses"
NOT_ACCEPTED = "this method is not accepted here"
INCOMPLETE = "the request is incomplete"


class ClientLeftError(Exception):
    """The client has left before the body of its request was complete."""


@dataclass(frozen=True, slots=True)
class Request:
    scope: Message
    receive: Receive

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    def header(self, name: bytes) -> str | None:
        """The values of all fields with this name, in lower case, joined; None if there is none."""
        values = [value.decode("latin-1") for field, value in self.scope["headers"] if field == name]
        return ",".join(values) or None

    def argument(self, name: str, default: str) -> str:
        """A value of the query string; the last one, where it has several of this name."""
        query: str = self.scope["query_string"].decode("latin-1")
        return dict(parse_qsl(query, keep_blank_values=True)).get(name, default)

    async def body(self, most: int) -> bytes:
        """Raises ValueError with one line where it has more bytes than ``most``, and ClientLeftError."""
        body, more = b"", True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            body += message.get("body", b"")
            if len(body) > most:
                raise ValueError(f"the body is longer than {most} bytes")
            more = message.get("more_body", False)
        return body

    async def left(self) -> None:
        """Wait until the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True, slots=True)
class Response:
    """``kind`` is its content type."""

    body: bytes
    status: int = 200
    kind: str = TEXT
    headers: Headers = ()

    async def send(self, _: Request, send: Send) -> None:
        length = (b"content-length", b"%d" % len(self.body))
        await send(_start(self.status, self.kind, (*self.headers, length)))
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class Stream:
    """A response that goes on until its parts end, or the client leaves."""

    parts: AsyncGenerator[bytes, None]
    kind: str

    async def send(self, request: Request, send: Send) -> None:
        await send(_start(200, self.kind, ()))
        sending = asyncio.ensure_future(self._send_parts(send))
        leaving = asyncio.ensure_future(request.left())
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait((sending, leaving))
        if not sending.cancelled():
            sending.result()  # raises what the parts have raised

    async def _send_parts(self, send: Send) -> None:
        async with aclosing(self.parts) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _start(status: int, kind: str, headers: Headers) -> Message:
    fields = [(b"content-type", kind.encode("latin-1")), *headers]
    return {"type": "http.response.start", "status": status, "headers": fields}


def line(text: str, status: int = 200, headers: Headers = ()) -> Response:
    return Response(text.encode() + b"\n", status, headers=headers)


Endpoint: TypeAlias = Callable[[Request], Awaitable["Response | Stream"]]


class Route(NamedTuple):
    path: str
    endpoint: Endpoint
    methods: tuple[str, ...] = ("GET", "HEAD")  # of HEAD's response uvicorn sends no body


def app_of(routes: Iterable[Route]) -> App:
    """The app with these paths. Nothing of a request is repeated in what it says of others."""
    by_path = {route.path: route for route in routes}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await _respond(by_path.get(scope["path"]), request)
        await response.send(request, send)

    return app


async def _respond(route: Route | None, request: Request) -> Response | Stream:
    if route is None:
        return line(NOT_FOUND, 404)
    if request.method not in route.methods:
        return line(NOT_ACCEPTED, 405, ((b"allow", ", ".join(route.methods).encode()),))
    try:
        return await route.endpoint(request)
    except ClientLeftError:
        return line(INCOMPLETE, 400)
