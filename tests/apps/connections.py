"""Answers in every way that a response can take, and says who answers: the fields x-pid and x-client."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

BIG = bytes(60_000_000)


async def exists(name: str) -> None:
    while not Path(name).exists():
        await asyncio.sleep(0.01)


async def body_of(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        name = message["type"]
        if name == "lifespan.shutdown":
            Path("shut").write_text(str(os.getpid()))
            await asyncio.sleep(float(os.environ.get("SHUTDOWN", "0")))
        await send({"type": name + ".complete"})
        if name == "lifespan.shutdown":
            return


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Says who it is when it is asked; says all else again."""
    await receive()
    if scope["path"] == "/slow":
        Path("handshaking").touch()
        await exists("accept")
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            Path("disconnected").write_text(str(message["code"]))
            return
        text = str(os.getpid()) if message["text"] == "who?" else message["text"]
        await send({"type": "websocket.send", "text": text})


async def streamed(send: Send) -> None:
    """One block, and another one when the test releases it."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await exists("release")
    await send({"type": "http.response.body", "body": b"last"})


async def events(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not Path("release").exists():
        body = f"data: {os.getpid()}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})


async def complete(scope: Scope, send: Send, body: bytes) -> None:
    host, port = scope["client"]
    headers = [
        (b"content-length", str(len(body)).encode()),
        (b"x-pid", str(os.getpid()).encode()),
        (b"x-client", f"{host} {port}".encode()),
        (b"x-path", scope["path"].encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await answer(scope, receive, send)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"]
    if path == "/stream":
        await streamed(send)
        return
    if path == "/events":
        await events(send)
        return
    if path == "/hold":
        Path("held").touch()
        await exists("release")
    body = path.encode()
    if path == "/big":
        body = BIG
    elif path == "/echo":
        body = await body_of(receive)
    await complete(scope, send, body)
    if path == "/background":
        await exists("release")
        Path("background").touch()
