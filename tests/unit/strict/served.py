"""A strict protocol on a real socket, with a client that sends bytes as they are."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from uvicorn import Config

from multicore_server.connections import timeouts
from multicore_server.connections.factory import movable
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.limits import Limits
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker import loop

PATIENCE = 10.0  # seconds


App = Callable[[Any, Any, Any], Awaitable[None]]


class Served:
    """One worker's connections, on one end of a pair of sockets each."""

    def __init__(self, app: App, http: str, bounds: Limits) -> None:
        options: dict[str, Any] = {
            "http": http,
            "ws": "wsproto",
            "h11_max_incomplete_event_size": bounds.head,
        }
        config = Config(app, log_config=None, access_log=False, **options)
        config.load()
        self.row = Scoreboard(1).row(0)
        self.state = ConnectionsState(self.row, OpenGate())
        self.state.limits = bounds
        protocol: Any = config.http_protocol_class
        self.protocol = movable(protocol)
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.ends: list[socket.socket] = []

    async def connect(self) -> Client:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.ends.append(theirs)
        _, protocol = await self.loop.connect_accepted_socket(self._make, ours)
        return Client(theirs, protocol)

    def _make(self) -> Any:
        return self.protocol(self.config, self.state, app_state={}, _loop=self.loop)

    def sweep(self, now: float) -> None:
        timeouts.sweep(list(self.state.connections), self.state.limits, now)

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        while self.state.connections or self.state.tasks:  # `run` limits the time
            await asyncio.sleep(0.005)


class Event:
    """As asyncio's, for each of the loops of a test."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    async def wait(self) -> None:
        while not self.is_set:
            await asyncio.sleep(0.005)
        self.is_set = False


class Client:
    def __init__(self, end: socket.socket, protocol: Any) -> None:
        self.end = end
        self.protocol = protocol
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> Client:
        await asyncio.wait_for(self.loop.sock_sendall(self.end, data), PATIENCE)
        return self

    async def is_read(self) -> None:
        """Wait until the server has read what was sent."""
        while self.protocol.has_unread:  # `run` limits the time
            await asyncio.sleep(0.001)

    async def receive(self) -> bytes:
        """What comes until the server closes, or nothing for a moment."""
        parts = []
        while True:
            try:
                part = await asyncio.wait_for(self.loop.sock_recv(self.end, 2**16), PATIENCE)
            except ConnectionResetError:
                part = b""
            parts.append(part)
            if not part:
                return b"".join(parts)

    async def answer(self) -> bytes:
        """One response with a Content-Length, or to the end."""
        data: bytes = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and length and len(body) >= int(length[0].split(b":")[1]):
                return data
            part: bytes = await asyncio.wait_for(self.loop.sock_recv(self.end, 2**16), PATIENCE)
            if not part:
                return data
            data += part


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def run(test: Callable[[Served], Awaitable[None]], app: App, http: str, bounds: Limits | None = None) -> None:
    async def whole() -> None:
        served = Served(app, http, bounds or Limits())
        try:
            await test(served)
        finally:
            await served.close()
        assert (served.row[Item.IN_HAND], served.row[Item.UNREAD]) == (0, 0)

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        seen.clear()
        loop.run(limited(whole()), factory)


async def limited(whole: Any) -> None:
    await asyncio.wait_for(whole, 3 * PATIENCE)


async def read(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        body += message["body"]
        if not message["more_body"]:
            return body


seen: list[Any] = []


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body, and notes its head."""
    seen.append(scope)
    try:
        body = await read(receive)
    except ConnectionError:
        seen.append("disconnected")
        return
    seen.append(body)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def streams(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})


def is_refused(client: Client) -> bool:
    return client.protocol not in client.protocol.connections
