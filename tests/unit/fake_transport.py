"""Connections without a network: uvicorn's protocols, as this server makes them, on scripted transports.

A `FakeTransport` does what a transport of asyncio's does: ``close`` and ``abort`` call ``connection_lost`` in
the loop's next turn. What is written is kept; while ``blocked`` it counts as not sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn import Config

from multicore_server.connections.factory import movable
from multicore_server.connections.inboxes import Kind
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.protocol import CONNECTIONS, IN_HAND, UNREAD
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Scoreboard

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody"
LAST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
TURNS = 6  # of the loop: what follows from something has followed by then

Send = Callable[[dict[str, Any]], Awaitable[None]]


class FakeSocket:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 80

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 12345


class FakeTransport(asyncio.Transport):
    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int = 7, **extra: object) -> None:
        super().__init__({"socket": FakeSocket(descriptor), **extra})
        self.loop = loop
        self.protocol: Any = None
        self.written = b""
        self.unsent = 0
        self.blocked = False
        self.reading = True
        self.aborted = False
        self._closing = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        if self.blocked:
            self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.aborted = True
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """The connection ends, here or at its other end."""
        if not self._closing:
            self._closing = True
            self.loop.call_soon(self._lose, exc)

    def _lose(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)
        self.protocol = None


class App:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[bool]] = []

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(told)
        if not await told or scope["type"] != "http":
            raise RuntimeError("the app's mistake")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def answer(self, number: int = 0, *, well: bool = True) -> None:
        told = self.waiting.pop(number)
        if not told.done():  # its request may have been cancelled
            told.set_result(well)


class Connections:
    """The connections of one worker, and what its row says of them."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, http: str, gate: OpenGate | None = None, ws: str = "none"
    ) -> None:
        self.loop = loop
        self.app = App()
        http_class: Any = http
        ws_class: Any = ws
        self.config = Config(
            self.app, http=http_class, ws=ws_class, interface="asgi3", lifespan="off", log_config=None,
            access_log=False, timeout_keep_alive=3600,
        )  # fmt: skip
        self.config.load()
        protocol: Any = self.config.http_protocol_class
        self.protocol: Any = movable(protocol)
        self.row = Scoreboard(1).row(0)
        self.state = ConnectionsState(self.row, gate or OpenGate())

    def count(self, kind: Kind) -> None:
        """What the dispatcher does where it keeps a connection."""
        self.row[CONNECTIONS] += 1
        if kind is Kind.NEW:
            self.row[IN_HAND] += 1
            self.row[UNREAD] += 1

    def connect(self, handed: Kind | None = None, **extra: object) -> Any:
        protocol = self.protocol(self.config, self.state, app_state={}, _loop=self.loop)
        if handed is not None:
            protocol.handed = handed
            self.count(handed)
        transport = FakeTransport(self.loop, **extra)  # type: ignore[arg-type]  # of any kind
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        return protocol

    def turn(self) -> None:
        """Let the loop do what there is to do."""
        for _ in range(TURNS):
            self.loop.run_until_complete(asyncio.sleep(0))

    def receive(self, protocol: Any, data: bytes) -> None:
        async def receive() -> None:  # in the loop: a WebSocket's protocol asks which one runs
            protocol.transport.protocol.data_received(data)

        self.loop.run_until_complete(receive())
        self.turn()

    def answer(self, number: int = 0, *, well: bool = True) -> None:
        self.app.answer(number, well=well)
        self.turn()

    @property
    def counts(self) -> tuple[float, float, float]:
        """In hand, unread, connections."""
        return self.row[IN_HAND], self.row[UNREAD], self.row[CONNECTIONS]

    def end(self) -> None:
        """Every client leaves, every app ends."""
        for connection in list(self.state.connections):
            transport: Any = connection.transport
            transport.lose(None)
        self.turn()
        while self.app.waiting:
            self.answer()
        self.turn()
