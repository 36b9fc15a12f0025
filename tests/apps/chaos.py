"""Answers with bytes that its clients can foretell, in every way, as ASGI and as WSGI; and causes trouble."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import Counter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send

BLOCK, LARGE = 4096, 65536
kept: list[bytearray] = []
asked = Counter("asked", "Requests, with labels that are many, so that their files grow.", ["number"])


def foretold(query: str) -> bytes:
    """The bytes of ``SEED-LENGTH``."""
    seed, _, length = query.partition("-")
    return random.Random(int(seed)).randbytes(int(length))


def digest(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


def trouble(path: str, query: str) -> None:
    asked.labels(f"n{random.randrange(1000)}").inc()
    if path == "/crash":
        os._exit(int(query))
    if path in ("/block", "/hang"):
        time.sleep(float(query))
    if path == "/leak":
        kept.append(bytearray(int(query) << 20))


def blocks(query: str, size: int = BLOCK) -> Iterator[bytes]:
    body = foretold(query)
    for begin in range(0, len(body), size):
        yield body[begin : begin + size]


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": digest(message["bytes"])})


async def streamed(send: Send, query: str, pause: float, size: int = BLOCK) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for block in blocks(query, size):
        await send({"type": "http.response.body", "body": block, "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b""})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await websocket(receive, send)
        return
    path, query = scope["path"], scope["query_string"].decode()
    if path in ("/stream", "/events"):
        await streamed(send, query, 0.1 if path == "/events" else 0.005)
        return
    if path == "/large":
        await streamed(send, query, 0.0, LARGE)
        return
    if path == "/sleep":
        await asyncio.sleep(float(query))
    trouble(path, query)
    body = digest(await body_of(receive)) if path == "/echo" else b"done"
    if path == "/bytes":
        body = foretold(query)
    headers = [(b"content-length", str(len(body)).encode()), (b"x-pid", str(os.getpid()).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/stream":
        start_response("200 OK", [])
        return blocks(query)
    if path == "/large":
        start_response("200 OK", [])
        return blocks(query, LARGE)
    if path == "/sleep":
        time.sleep(float(query))
    trouble(path, query)
    body = digest(environ["wsgi.input"].read()) if path == "/echo" else b"done"
    if path == "/bytes":
        body = foretold(query)
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Pid", str(os.getpid()))])
    return [body]
