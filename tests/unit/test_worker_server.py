"""How a worker's server starts, beats, drains and ends, over real sockets and with a host that only notes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from gunicorn.config import Config as GunicornConfig
from uvicorn import Config

from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.protocol import movable
from multicore_server.connections.siblings import BUSY, OPEN
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.settings.table import Settings
from multicore_server.worker import drain
from multicore_server.worker import server as module
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.server import WorkerServer
from tests.unit.fake_transport import GET, LAST, App

PATIENCE = 10.0  # seconds

Scheduling = Literal["least", "shared"]


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LINGER": 0.05, "FAREWELL": 0.1, "LOOK": 0.005}.items():
        monkeypatch.setattr(drain, name, seconds)
    monkeypatch.setattr(module, "LIFESPAN_GRACE", 0.05)


class Host:
    """A worker that notes what it is told."""

    identity = "instance=0"
    waits_for_app = False

    def __init__(
        self, scheduling: Scheduling = "least", interface: str = "asgi3", graceful_timeout: int = 2
    ) -> None:
        self.interface = interface
        self.cfg = SimpleNamespace(
            threads=1, max_requests=0, graceful_timeout=graceful_timeout, settings=GunicornConfig().settings
        )
        self.handover = Handover.make(Scoreboard(2), 2)
        self.lifeline, self.writer = os.pipe()
        self.channel = WorkerChannel()
        row = self.handover.scoreboard.row(0)
        self.handover.scoreboard.publish(frozenset({0}))
        settings = Settings(workers=2, scheduling=scheduling)
        self.context = WorkerContext(0, 1, 0, row, self.channel, self.lifeline, settings, self.handover, "")
        self.told: list[object] = []

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.told.append("watch")

    def beat(self) -> None:
        self.context.row[Item.HEARTBEAT] = time.monotonic()

    def on_started(self) -> None:
        self.told.append("started")

    def on_answered(self) -> None:
        self.told.append("answered")

    def on_signal(self, number: signal.Signals) -> None:
        self.told.append(number)

    def end_in_any_case(self) -> None:
        self.told.append("end in any case")

    def close(self) -> None:
        self.channel.close()
        for end in (end for pair in self.handover.inboxes._pairs for end in pair):
            end.close()
        for descriptor in (self.handover.lock, self.lifeline, self.writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Serving:
    """A server with one listener; its app answers when it is told to."""

    def __init__(self, host: Host, app: Any = None, lifespan: Any = "off") -> None:
        self.app = App()
        self.host = host
        config = Config(
            app or self.app, http="httptools", interface="asgi3", lifespan=lifespan, log_config=None,
            access_log=False, timeout_keep_alive=3600,
            timeout_graceful_shutdown=host.cfg.graceful_timeout,
        )  # fmt: skip
        config.load()
        protocol: Any = config.http_protocol_class
        config.http_protocol_class = movable(protocol)
        self.server = WorkerServer(config, host)
        self.server.lifespan = config.lifespan_class(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.clients: list[socket.socket] = []

    def wake_sibling(self) -> None:
        board = self.host.handover.scoreboard
        board.row(ROWS_PER_SLOT)[Item.ACCEPTING] = 1
        board.row(ROWS_PER_SLOT)[Item.HEARTBEAT] = time.monotonic()
        board.publish(frozenset({0, ROWS_PER_SLOT}))

    async def start(self) -> None:
        await self.server.startup([self.listener])

    async def ask(self, request: bytes = GET) -> socket.socket:
        """A client whose request the app has."""
        loop = asyncio.get_running_loop()
        client = socket.socket()
        client.setblocking(False)
        self.clients.append(client)
        await loop.sock_connect(client, self.listener.getsockname())
        before = len(self.app.waiting)
        await loop.sock_sendall(client, request)
        await self.until(lambda: len(self.app.waiting) > before)
        return client

    async def kept_alive(self) -> socket.socket:
        client = await self.ask()
        self.app.answer()
        assert (await self.read(client)).endswith(b"ok")
        return client

    async def read(self, client: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.sock_recv(client, 4096), PATIENCE)

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)

    async def drain(self, *, quick: bool = False) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        self.server.stop(quick=quick)
        await self.server.shutdown([self.listener])
        return time.monotonic() - started

    def close(self) -> None:
        for client in (*self.clients, self.listener):
            client.close()
        self.host.close()


Scenario = Callable[[Serving], Awaitable[None]]


def play(scenario: Scenario, host: Host | None = None, **options: Any) -> None:
    async def main() -> None:
        serving = Serving(host or Host(), **options)
        try:
            await scenario(serving)
        finally:
            serving.close()

    asyncio.run(asyncio.wait_for(main(), 2 * PATIENCE))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    caplog.set_level(logging.INFO, "gunicorn.error")
    yield caplog
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)


# --- its life


def test_it_runs_from_its_start_to_its_end_and_says_so() -> None:
    async def scenario(serving: Serving) -> None:
        before = signal.getsignal(signal.SIGTERM)
        running = asyncio.create_task(serving.server.serve([serving.listener]))
        await serving.until(lambda: serving.host.told == ["watch", "started"])
        await serving.kept_alive()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving.until(lambda: signal.SIGTERM in serving.host.told)
        assert serving.server.state.draining, "from the signal handler on"
        serving.server.stop()
        await asyncio.wait_for(running, PATIENCE)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            loop.remove_signal_handler(name)
        signal.signal(signal.SIGTERM, before)

    play(scenario)


def test_it_listens_only_when_the_app_says_that_it_is_ready() -> None:
    host = Host()
    host.waits_for_app = True

    async def scenario(serving: Serving) -> None:
        starting = asyncio.create_task(serving.start())
        await asyncio.sleep(0.02)
        assert not host.context.row[Item.ACCEPTING]
        serving.server.app_is_ready()
        await asyncio.wait_for(starting, PATIENCE)
        assert host.context.row[Item.ACCEPTING]
        await serving.drain()

    play(scenario, host)


def test_an_app_that_is_ready_too_late_is_no_mistake() -> None:
    async def main() -> WorkerServer:
        serving = Serving(Host())
        serving.close()
        return serving.server

    asyncio.run(main()).app_is_ready()


@pytest.mark.parametrize("interface", ["asgi3", "wsgi"])
@pytest.mark.parametrize("limit", [0, 100])
def test_responses_are_told_only_where_somebody_acts_on_them(interface: str, limit: int) -> None:
    host = Host(interface=interface)
    host.cfg.max_requests = limit

    async def scenario(serving: Serving) -> None:
        await serving.start()
        await serving.kept_alive()
        assert ("answered" in host.told) is bool(limit or interface == "wsgi")
        await serving.drain()

    play(scenario, host)


def test_a_surplus_leaves_after_its_next_response() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        serving.wake_sibling()
        serving.server._beat(asyncio.get_running_loop())
        assert serving.server.acceptor.dispatcher is not None
        serving.server.acceptor.dispatcher.surplus = 1
        serving.server._choose_listener()
        serving.host.context.row[Item.CONNECTIONS] = 5
        serving.app.answer()
        await serving.until(lambda: serving.host.handover.inboxes.waiting(1))
        assert (await serving.read(client)).endswith(b"ok")
        await serving.drain()

    play(scenario)


def test_the_worst_lag_fades_and_the_next_heartbeat_comes() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        loop = asyncio.get_running_loop()
        serving.server._beat(loop)
        time.sleep(0.3)
        await serving.until(lambda: serving.host.context.row[Item.LOOP_LAG] > 0.1)
        before = serving.host.context.row[Item.HEARTBEAT]
        await serving.until(lambda: serving.host.context.row[Item.HEARTBEAT] > before)
        await serving.drain()

    play(scenario)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM, errno.EPERM, errno.ENOBUFS])
def test_a_heartbeat_that_fails_is_followed_by_the_next(number: int, log: pytest.LogCaptureFixture) -> None:
    host = Host()
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        raise OSError(number, os.strerror(number))

    host.beat = beat  # type: ignore[method-assign]  # measuring memory needs a descriptor

    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server._beat(asyncio.get_running_loop())
        await serving.until(lambda: len(beats) >= 3)
        await serving.kept_alive()
        await serving.drain()

    play(scenario, host)
    assert log.text.count("a part of the heartbeat failed") == 1


# --- the drain


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


def test_a_tls_handshake_has_its_time_where_nobody_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "LINGER", 0.3)

    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server.config.ssl_certfile = "made up"
        monkeypatch.setattr(serving.server.config, "ssl", object(), raising=False)
        assert await serving.drain() >= 0.3

    play(scenario, Host(scheduling="shared"))


# --- the app's own end


async def slow_to_end(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(PATIENCE)


async def fails_to_start(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


def test_an_app_that_does_not_end_is_left(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        assert await serving.drain(quick=True) < 2

    play(scenario, app=slow_to_end, lifespan="on")
    assert "the app's lifespan shutdown took too long; ending without it" in log.text


def test_an_app_whose_startup_fails_never_listens(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        with pytest.raises(SystemExit):
            await serving.start()
        assert not serving.host.context.row[Item.ACCEPTING]

    play(scenario, app=fails_to_start, lifespan="on")
