"""How connections come to a worker: real listeners and inboxes, with the faults that a kernel has at hand."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trustme

from multicore_server.connections import acceptor as module
from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Handed, Kind, Sent
from multicore_server.connections.inline import InlineGate, OpenGate
from multicore_server.connections.protocol import CONNECTIONS, IN_HAND, UNREAD
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
        self.row[Item.HEARTBEAT] = time.monotonic()
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
        self.serving(0)

    def make(self) -> Any:
        return self.connections.protocol(self.config, self.state, app_state={}, _loop=self.loop)

    def serving(self, *slots: int) -> None:
        self.handover.scoreboard.publish(frozenset(slot * ROWS_PER_SLOT for slot in slots))

    def wake_sibling(self) -> None:
        self.sibling[Item.ACCEPTING] = 1
        self.sibling[Item.HEARTBEAT] = time.monotonic()
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
        for pair in self.handover.inboxes._pairs:
            for end in pair:
                end.close()
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


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Complaints:
    caplog.set_level(logging.WARNING, "gunicorn.error")
    return lambda: caplog.messages


# --- accepting


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"shared": True}], ids=str)
def test_what_comes_is_accepted_and_answered(options: dict[str, bool]) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        assert await place.answered(place.connect())
        assert place.row[Item.ACCEPTED] == 1
        place.acceptor.beat(place.open, 1)
        assert place.row[CONNECTIONS] == 1

    play(scenario, **options)


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"shared": True}], ids=str)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_without_descriptors_accepting_pauses_with_one_line_and_goes_on(
    number: int, options: dict[str, bool], complaints: Complaints
) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.listener.errors = [number] * 3
        client = place.connect()
        for left in (2, 1, 0):
            await place.until(partial(place.listener.has_failed_but, left))
            await asyncio.sleep(0.01)
            assert place.listener.has_failed_but(left), "it does not try on and on"
            place.acceptor.beat(0, 0)
        assert await place.answered(client)
        assert len(complaints()) == 1
        assert "no connection can be accepted" in complaints()[0]

    play(scenario, **options)


def test_a_client_that_gave_up_in_the_backlog_holds_nobody_up(complaints: Complaints) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.listener.errors = [errno.ECONNABORTED]
        assert await place.answered(place.connect())
        assert complaints() == []

    play(scenario, inline=True)


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_less_loaded_sibling_gets_is_closed_here(inline: bool) -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        await place.acceptor.open([place.listener])
        place.row[IN_HAND] += 5
        place.connect()
        await place.until(lambda: place.handover.inboxes.waiting(1))
        assert place.open == 0
        place.row[IN_HAND] -= 5

    play(scenario, inline=inline)


def test_a_failed_tls_handshake_counts_for_nothing() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        client = place.connect()
        await place.until(lambda: place.counts == (1, 1))
        await place.loop.sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
        await place.until(lambda: place.counts == (0, 0))
        gone = place.connect()
        await place.until(lambda: place.counts == (1, 1))
        gone.close()
        await place.until(lambda: place.counts == (0, 0))

    play(scenario, tls=True)


def test_tls_is_served() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        trusting = ssl.create_default_context()
        place.authority.configure_trust(trusting)
        reader, writer = await asyncio.open_connection(*place.listener.getsockname(), ssl=trusting)
        writer.write(GET)
        await place.until(lambda: place.connections.app.waiting)
        place.connections.app.answer()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.transport.abort()

    play(scenario, tls=True)


# --- taking


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("kind", list(Kind))
def test_what_siblings_send_is_adopted(kind: Kind, inline: bool) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        clients = [place.send_to_inbox(kind) for _ in range(3)]
        await place.until(lambda: place.open == 3)
        for client in clients:
            assert await place.answered(client)

    play(scenario, inline=inline)


def test_without_descriptors_what_is_in_the_inbox_waits_on(
    complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many")))
            client = place.send_to_inbox()
            await place.until(complaints)
            await asyncio.sleep(0.02)
        assert place.handover.inboxes.waiting(0) == 1
        assert len(complaints()) == 1
        place.acceptor.beat(0, 0)
        assert await place.answered(client)

    play(scenario)


def test_one_that_came_to_nothing_on_its_way_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(place: Workplace) -> None:
        async def fails(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOTCONN, "not connected")

        await place.acceptor.open([place.listener])
        monkeypatch.setattr(place.loop, "connect_accepted_socket", fails)
        client = place.send_to_inbox()
        assert await place.closed(client)
        assert place.counts == (0, 0)

    play(scenario)


def test_a_protocol_that_does_not_count_leaves_no_count() -> None:
    class Other(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.abort()

    async def scenario(place: Workplace) -> None:
        place.acceptor._make_protocol = Other
        await place.acceptor.open([place.listener])
        client = place.send_to_inbox()
        assert await place.closed(client)
        assert place.counts == (0, 0)

    play(scenario)


def test_unattended_inboxes_are_swept_at_a_heartbeat() -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        place.sibling[Item.HEARTBEAT] -= 5
        await place.acceptor.open([place.listener])
        client = place.send_to_inbox(slot=1)
        place.acceptor.beat(0, 0)
        assert await place.answered(client)

    play(scenario)


# --- inline


def test_inline_nothing_is_taken_behind_a_request_until_it_is_answered() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        busy = place.connect()
        await place.loop.sock_sendall(busy, GET)
        await place.until(lambda: place.connections.app.waiting)
        clients = [place.connect(), place.send_to_inbox()]
        await asyncio.sleep(0.05)
        assert (place.open, place.handover.inboxes.waiting(0)) == (1, 1)
        assert not place.acceptor._taking
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)
        place.acceptor.take_on()
        for client in clients:
            assert await place.answered(client)

    play(scenario, inline=True)


def test_inline_what_waits_for_long_is_placed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNATTENDED", 0.0)

    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        await place.loop.sock_sendall(place.connect(), GET)
        await place.until(lambda: place.connections.app.waiting)
        place.send_to_inbox()
        await place.until(lambda: not place.acceptor._taking)
        place.wake_sibling()
        place.acceptor.beat(1, 0)
        assert place.handover.inboxes.waiting(0) == 0
        assert place.handover.inboxes.waiting(1) == 1
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)

    play(scenario, inline=True)


def test_inline_one_that_is_to_be_adopted_while_a_request_is_in_progress_is_set_aside() -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        await place.acceptor.open([place.listener])
        await place.loop.sock_sendall(place.send_to_inbox(Kind.KEPT_ALIVE), GET)
        await place.until(lambda: place.connections.app.waiting)
        ours, theirs = socket.socketpair()
        place.clients.append(theirs)
        place.connections.count(Kind.NEW)
        place.acceptor._adopt_soon(Handed(Kind.NEW, ours))
        await place.until(lambda: not place.acceptor.adopting)
        assert place.handover.inboxes.waiting(1) == 1
        assert place.counts == (1, 0)
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)

    play(scenario, inline=True)


# --- the end


def test_who_retires_hands_over_what_is_in_its_inbox() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.wake_sibling()
        place.acceptor._take_no_more()
        place.send_to_inbox()
        await place.acceptor.close([place.listener])
        assert [place.handover.inboxes.waiting(slot) for slot in (0, 1)] == [0, 1]

    play(scenario)


@pytest.mark.parametrize("shared", [False, True])
def test_the_last_worker_accepts_what_has_come(shared: bool) -> None:
    async def scenario(place: Workplace) -> None:
        clients = [place.connect()]
        if not shared:
            clients += [place.send_to_inbox(), place.send_to_inbox(slot=1)]
        place.serving(1)
        place.serving()
        await place.acceptor.close([place.listener])
        for client in clients:
            assert await place.answered(client)

    play(scenario, shared=shared)


def test_with_a_sibling_the_backlog_stays_where_it_is() -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        place.connect()
        await place.acceptor.close([place.listener])
        assert place.row[Item.ACCEPTED] == 0

    play(scenario)


def test_retiring_between_accept_and_adoption_loses_nothing() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        client = place.connect()
        place.acceptor._accept(place.listener)
        await place.acceptor.close([place.listener])
        assert await place.answered(client)

    play(scenario, inline=True)


def test_idle_connections_leave_by_balance_and_in_a_drain_all_of_them() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.wake_sibling()
        assert not place.state.sheds()
        assert not place.acceptor.has_surplus
        place.row[IN_HAND] = place.row[UNREAD] = 0
        place.acceptor.beat(4, 0)
        assert place.acceptor.has_surplus
        assert place.state.sheds()
        place.acceptor.begin_to_drain()
        place.state.draining = True
        assert not place.state.sheds(), "nobody was seen yet that takes them"
        place.state.moving = True
        assert place.state.sheds()
        place.acceptor.beat(4, 0)
        assert place.acceptor.beats_quickly

    play(scenario)
