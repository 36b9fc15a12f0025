"""Ends its requests in every way: complete, late, never, by an exception, after its client has left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Header = tuple[bytes, bytes]


class Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.query: str = scope["query_string"].decode()

    async def start(self, status: int = 200, *headers: Header) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(self, data: bytes = b"", *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def complete(self, status: int = 200) -> None:
        await self.start(status, *([] if status == 204 else [(b"content-length", b"2")]))
        await self.body(b"" if status == 204 or self.scope["method"] == "HEAD" else b"ok")


async def fail(exchange: Exchange) -> None:
    raise RuntimeError("the app's mistake")


async def fail_late(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.body(b"some", more=True)
    raise RuntimeError("the app's mistake, halfway")


async def fail_afterwards(exchange: Exchange) -> None:
    await exchange.start(200, (b"content-length", b"0"))
    await exchange.body()
    raise RuntimeError("the app's mistake, afterwards")


async def say_nothing(exchange: Exchange) -> None:
    pass


async def end_halfway(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.body(b"some", more=True)


async def wait_for_the_clients_end(exchange: Exchange) -> None:
    print("waiting", flush=True)
    while (await exchange.receive())["type"] != "http.disconnect":
        pass
    print("left", flush=True)


async def sleep(exchange: Exchange) -> None:
    print("sleeping", flush=True)
    await asyncio.sleep(float(exchange.query))
    await exchange.complete()


async def block(exchange: Exchange) -> None:
    time.sleep(float(exchange.query))
    await exchange.complete()


async def stream(exchange: Exchange) -> None:
    await exchange.start()
    for _ in range(5):
        await exchange.body(b"part", more=True)
    await exchange.body()


async def stream_without_end(exchange: Exchange) -> None:
    """Until the client leaves."""
    await exchange.start()
    leaving = asyncio.ensure_future(exchange.receive())
    while not leaving.done() or leaving.result()["type"] != "http.disconnect":
        if leaving.done():
            leaving = asyncio.ensure_future(exchange.receive())
        await exchange.body(b"part" * 100, more=True)
        await asyncio.sleep(0.01)


async def say_status(exchange: Exchange) -> None:
    await exchange.complete(int(exchange.query))


async def say_ok(exchange: Exchange) -> None:
    await exchange.complete()


ENDINGS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    "/": say_ok,
    "/raise": fail,
    "/raise-late": fail_late,
    "/raise-after": fail_afterwards,
    "/silent": say_nothing,
    "/half": end_halfway,
    "/wait": wait_for_the_clients_end,
    "/sleep": sleep,
    "/block": block,
    "/stream": stream,
    "/endless": stream_without_end,
    "/status": say_status,
}


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await ENDINGS[scope["path"]](Exchange(scope, receive, send))
