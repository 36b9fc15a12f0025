"""One worker's connections on a fake transport, an app that notes what it is called with, and heads."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections.factory import ProtocolFactory, movable
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.known_heads import LONGEST
from multicore_server.connections.limits import Limits
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Scoreboard
from tests.unit.fake_transport import GET, POST, FakeTransport

HEAD = b"HEAD /a%20b?c=d HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"
EMPTY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
LATER = b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n"
LATER_LAST = LATER.replace(b"host", b"connection: close\r\nhost")
OLD = b"GET / HTTP/1.0\r\n\r\n"
NOT_KNOWN = {
    "a body": POST,
    "a body that comes later": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n",
    "HTTP/1.0": OLD,
    "100-continue": b"GET / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n",
    "two": GET + GET,
    "line feeds": b"GET / HTTP/1.1\nhost: x\n\n",
    "an upgrade": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "a long one": b"GET / HTTP/1.1\r\nhost: x\r\na: %b\r\n\r\n" % (b"a" * LONGEST),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "rubbish": b"rubbish\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
}


class App:
    """Notes what it is called with, and answers at once, or in a later turn of the loop."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(copy.deepcopy(scope))
        path = scope["path"]
        if path == "/later":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if path != "/unread":
            self.bodies.append((await receive())["body"])
        scope["headers"].append((b"x-seen", b"1"))
        scope["state"]["seen"] = scope["asgi"]["seen"] = True
        scope["path"] = "/seen"
        body = f"{len(self.scopes)} {path}".encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Worker:
    """The connections of one worker, and what its parser is fed with."""

    def __init__(
        self, protocol: Any = HttpToolsProtocol, limits: Limits | None = None, **options: Any
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.app = App()
        self.connections: list[Any] = []
        config = Config(
            self.app,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            **options,
        )
        config.load()
        state = ConnectionsState(Scoreboard(1).row(0), OpenGate())
        state.limits = limits or state.limits
        self.factory = ProtocolFactory(
            movable(protocol), config=config, server_state=state, app_state={"pool": 1}, _loop=self.loop
        )

    def connect(self, **extra: object) -> Any:
        connection = self.factory()
        transport = FakeTransport(self.loop, **extra)  # type: ignore[arg-type]  # of any kind
        transport.set_protocol(connection)
        connection.connection_made(transport)
        self.connections.append(connection)
        return connection

    def feed(self, connection: Any, data: bytes) -> None:
        async def feed() -> None:
            if not connection.transport.is_closing():
                connection.data_received(data)

        self.loop.run_until_complete(feed())

    def turn(self, times: int = 8) -> None:
        for _ in range(times):
            self.loop.run_until_complete(asyncio.sleep(0))

    def close(self) -> None:
        for connection in self.connections:
            connection.transport.close()
        self.turn(40)
        self.loop.close()

    def ask(self, connection: Any, data: bytes = GET) -> bool:
        """Whether its head was known."""
        cycle = connection.cycle
        self.feed(connection, data)
        known = connection.cycle is not cycle and getattr(connection.cycle, "known", None) is not None
        self.turn()
        return known
