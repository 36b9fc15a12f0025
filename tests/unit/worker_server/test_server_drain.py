"""How a worker's server drains: what is in progress is answered, what is idle leaves or is closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.siblings import BUSY, OPEN
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item
from multicore_server.worker import drain
from tests.unit.fake_transport import GET, LAST
from tests.unit.worker_server.serving import Host, Serving, play


def test_an_idle_connection_gets_a_moment_and_is_closed() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.kept_alive()
        took = await serving.drain()
        assert await serving.read(client) == b""
        assert drain.LINGER <= took < 1

    play(scenario)


def test_a_request_in_progress_is_answered_with_the_last_response() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(2 * drain.LINGER)
        assert not draining.done()
        serving.app.answer()
        await draining
        assert b"connection: close" in await serving.read(client)

    play(scenario)


def test_a_response_that_its_client_still_reads_is_not_cut() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.kept_alive()
        transport: Any = next(iter(serving.server.state.connections)).transport
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        size = 20_000_000
        transport.write(bytes(size))
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(4 * drain.LINGER)
        assert not draining.done()
        loop, got = asyncio.get_running_loop(), 0
        while data := await loop.sock_recv(client, 2**20):
            got += len(data)
        assert got == size
        await draining

    play(scenario)


def test_idle_connections_go_to_a_sibling_at_once() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        for _ in range(3):
            await serving.kept_alive()
        serving.wake_sibling()
        assert await serving.drain() < drain.LINGER + 0.5
        inboxes = serving.host.handover.inboxes
        assert inboxes.waiting(1) == 3
        received = inboxes.receive(1)
        assert len(received) == 3, "in one message"
        handed = received[0]
        assert handed.kind is Kind.KEPT_ALIVE
        for each in received:
            each.connection.close()

    play(scenario)


def test_while_a_sibling_has_enough_idle_connections_are_served_on_and_not_closed() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        clients = [await serving.kept_alive() for _ in range(3)]
        serving.wake_sibling()
        inboxes = serving.host.handover.inboxes
        ours, theirs = socket.socketpair()
        with ours, theirs, contextlib.suppress(BlockingIOError):
            while True:
                inboxes.send(1, [Sent(Kind.KEPT_ALIVE, ours.fileno())])
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(4 * drain.LINGER)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(clients[0], GET)
        await serving.until(lambda: serving.app.waiting)
        serving.app.answer()
        assert b"connection: close" not in await serving.read(clients[0])
        while inboxes.waiting(1) > 3 or not draining.done():
            for handed in inboxes.receive(1):
                handed.connection.close()
            await asyncio.sleep(0)
            if inboxes.waiting(1) <= 3 and draining.done():
                break
        await draining

    play(scenario, Host(graceful_timeout=10))


def test_a_sibling_that_is_busy_with_a_slow_client_is_waited_for() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        await serving.kept_alive()
        serving.wake_sibling()
        sibling = serving.host.handover.scoreboard.row(ROWS_PER_SLOT)
        sibling[Item.ACCEPTING] = BUSY
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(4 * drain.LINGER)
        assert not draining.done()
        sibling[Item.ACCEPTING] = OPEN
        await draining
        assert serving.host.handover.inboxes.waiting(1) == 1

    play(scenario, Host(graceful_timeout=10))


def test_a_connection_that_is_broken_cuts_no_other_short() -> None:
    class Broken:
        """As asyncio's transport is once it has let go of its SSL protocol."""

        def is_closing(self) -> bool:
            raise AttributeError("'NoneType' object has no attribute '_is_transport_closing'")

    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        connections: set[Any] = serving.server.state.connections
        broken = WebSocket(connections)
        broken.transport = Broken()  # type: ignore[assignment]
        connections.add(broken)
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(0.1)
        serving.app.answer()
        await serving.until(lambda: len(connections) == 1)
        connections.discard(broken)
        await draining
        assert b" 200 " in await serving.read(client)

    play(scenario)


def test_a_busy_connection_follows_after_its_response() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        serving.wake_sibling()
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(0.02)
        serving.app.answer()
        await draining
        assert b"connection: close" not in await serving.read(client)
        assert serving.host.handover.inboxes.waiting(1) == 1

    play(scenario)


def test_a_request_beyond_graceful_timeout_is_answered_500(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        assert await serving.drain() < 5
        assert b" 500 " in await serving.read(client)
        assert serving.host.told[-1] == "end in any case"

    play(scenario, Host(graceful_timeout=1))
    assert "requests not done after 1 s (graceful_timeout): 1; cancelling them" in log.text


def test_told_to_be_quick_it_waits_for_nobody(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        assert await serving.drain(quick=True) < 1
        assert b" 500 " in await serving.read(client)

    play(scenario, Host(graceful_timeout=30))
    assert "graceful_timeout" not in log.text


def test_a_request_that_has_begun_to_arrive_is_answered() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        loop = asyncio.get_running_loop()
        client = socket.create_connection(serving.listener.getsockname())
        client.setblocking(False)
        serving.clients.append(client)
        await loop.sock_sendall(client, LAST[:10])
        await serving.until(
            lambda: serving.host.context.row[Item.UNREAD] == 0 and serving.server.state.connections
        )
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(3 * drain.LINGER)
        await loop.sock_sendall(client, LAST[10:])
        await serving.until(lambda: serving.app.waiting)
        serving.app.answer()
        await draining
        assert b" 200 " in await serving.read(client)

    play(scenario)


class WebSocket:
    """As a WebSocket of uvicorn's looks in a drain."""

    handshake_complete = True

    def __init__(self, connections: set[Any], *, shaking: bool = False) -> None:
        self.connections = connections
        self.told_at: list[float] = []
        self.handshake_complete = not shaking
        self.transport = SimpleNamespace(is_closing=lambda: False)

    def shutdown(self) -> None:
        self.told_at.append(time.monotonic())
        self.connections.discard(self)


@pytest.mark.parametrize("sibling", [False, True])
def test_a_websocket_is_told_at_once_or_where_clients_can_go_on_at_the_end(sibling: bool) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        if sibling:
            serving.wake_sibling()
        connections: set[Any] = serving.server.state.connections
        websocket = WebSocket(connections)
        connections.add(websocket)
        began = time.monotonic()
        await serving.drain()
        after = websocket.told_at[0] - began
        assert after > 0.5 if sibling else after < 0.5

    play(scenario, Host(graceful_timeout=1))


def test_a_websocket_that_the_app_has_not_accepted_is_a_request_in_progress() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        connections: set[Any] = serving.server.state.connections
        websocket = WebSocket(connections, shaking=True)
        connections.add(websocket)
        draining = asyncio.create_task(serving.drain())
        await asyncio.sleep(0.1)
        assert websocket.told_at == []
        websocket.handshake_complete = True
        await draining
        assert websocket.told_at

    play(scenario)


@pytest.mark.parametrize("sibling", [False, True])
def test_a_websocket_that_the_app_never_accepts_is_told_soon_or_at_the_end(sibling: bool) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        if sibling:
            serving.wake_sibling()
        connections: set[Any] = serving.server.state.connections
        websocket = WebSocket(connections, shaking=True)
        connections.add(websocket)
        began = time.monotonic()
        await serving.drain()
        after = websocket.told_at[0] - began
        end = 3 - drain.FAREWELL
        assert end <= after < 3 if sibling else drain.ACCEPT <= after < end

    play(scenario, Host(graceful_timeout=3))


def test_a_tls_handshake_has_its_time_where_nobody_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LINGER", 0.3)

    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server.config.ssl_certfile = "made up"
        monkeypatch.setattr(serving.server.config, "ssl", object(), raising=False)
        assert await serving.drain() >= 0.3

    play(scenario, Host(scheduling="shared"))
