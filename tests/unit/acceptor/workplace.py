"""An acceptor with real listeners and inboxes."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trustme

from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.inline import InlineGate, OpenGate
from multicore_server.connections.protocol import IN_HAND, UNREAD
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from tests.unit.fake_transport import GET, Connections

PATIENCE = 10.0  # seconds


class Listener(socket.socket):
    """A listener whose accept fails as it is told, once for each error."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[int] = []
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.setblocking(False)

    def has_failed_but(self, left: int) -> bool:
        return len(self.errors) == left

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class Workplace:
    """A worker in slot 0, with a sibling in slot 1 that is only seen through its row and its inbox."""

    def __init__(self, *, shared: bool = False, inline: bool = False, tls: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.handover = Handover.make(Scoreboard(2), 2)
        self.sibling = self.handover.scoreboard.row(ROWS_PER_SLOT)
        self.row = self.handover.scoreboard.row(0)
        self.row[Item.BEAT_DUE] = time.monotonic() + PATIENCE
        self.dispatcher = None if shared else Dispatcher(self.handover, 0, self.row, inline=inline)
        gate = InlineGate(lambda _: False) if inline else OpenGate()
        self.connections = Connections(self.loop, "httptools", gate)
        self.connections.row = self.connections.state.row = self.row
        self.state = self.connections.state
        self.config = self.connections.config
        self.authority = trustme.CA()
        if tls:
            self.config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert("127.0.0.1").configure_cert(self.config.ssl)
        board = self.handover.scoreboard
        self.acceptor = Acceptor(self.config, self.state, board, self.dispatcher, self.make)
        self.listener = Listener()
        self.clients: list[socket.socket] = []
        self.seen: list[Any] = []  # scopes, where a test notes them
        self.serving(0)

    def make(self) -> Any:
        return self.connections.protocol(self.config, self.state, app_state={}, _loop=self.loop)

    def serving(self, *slots: int) -> None:
        self.handover.scoreboard.publish(frozenset(slot * ROWS_PER_SLOT for slot in slots))

    def wake_sibling(self) -> None:
        self.sibling[Item.ACCEPTING] = 1
        self.sibling[Item.BEAT_DUE] = time.monotonic() + PATIENCE
        self.serving(0, 1)

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        return client

    def send_to_inbox(self, kind: Kind = Kind.NEW, slot: int = 0) -> socket.socket:
        ours, theirs = socket.socketpair()
        with ours:
            self.handover.inboxes.send(slot, [Sent(kind, ours.fileno())])
        theirs.setblocking(False)
        self.clients.append(theirs)
        return theirs

    async def answered(self, client: socket.socket) -> bool:
        """Whether a request over this connection is answered."""
        await self.loop.sock_sendall(client, GET)
        await self.until(lambda: self.connections.app.waiting)
        self.connections.app.answer()
        got = b""
        while not got.endswith(b"ok"):
            data = await asyncio.wait_for(self.loop.sock_recv(client, 4096), PATIENCE)
            if not data:
                return False
            got += data
        return True

    async def closed(self, client: socket.socket) -> bool:
        try:
            return await asyncio.wait_for(self.loop.sock_recv(client, 1), PATIENCE) == b""
        except ConnectionResetError:
            return True

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    @property
    def open(self) -> int:
        return len(self.state.connections)

    @property
    def counts(self) -> tuple[float, float]:
        return self.row[IN_HAND], self.row[UNREAD]

    async def end(self) -> None:
        if self.listener.fileno() >= 0:
            await self.acceptor.close([self.listener])
        await self.until(lambda: not self.acceptor.adopting)
        for connection in list(self.state.connections):
            transport: Any = connection.transport
            transport.abort()
        await self.until(lambda: not self.state.connections)
        self.handover.inboxes.close()
        os.close(self.handover.lock)
        for client in self.clients:
            client.close()
        assert self.counts == (0, 0)


Complaints = Callable[[], list[str]]


Scenario = Callable[[Workplace], Awaitable[None]]


def play(scenario: Scenario, **options: bool) -> None:
    async def main() -> None:
        place = Workplace(**options)
        try:
            await scenario(place)
        finally:
            await place.end()

    asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))
