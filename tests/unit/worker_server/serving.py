"""A worker's server over real sockets, with a host that only notes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Literal

from gunicorn.config import Config as GunicornConfig
from uvicorn import Config

from multicore_server.connections.factory import movable
from multicore_server.connections.handover import Handover
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.settings.table import Settings
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.server import WorkerServer
from tests.unit.fake_transport import GET, App

PATIENCE = 10.0  # seconds


Scheduling = Literal["least", "shared"]


class Host:
    """A worker that notes what it is told."""

    identity = "instance=0"
    waits_for_app = False
    direct: Any = None
    long_requests: Any = None

    def __init__(
        self, scheduling: Scheduling = "least", interface: str = "asgi3", graceful_timeout: int = 2
    ) -> None:
        self.interface = interface
        self.cfg = SimpleNamespace(
            threads=1,
            timeout=30,
            max_requests=0,
            graceful_timeout=graceful_timeout,
            tmp_upload_dir=None,
            worker_tmp_dir=None,
            settings=GunicornConfig().settings,
            get_cmd_args_from_env=list,
        )
        self.handover = Handover.make(Scoreboard(2), 2)
        self.cluster = ClusterState.make(2 * ROWS_PER_SLOT)
        self.lifeline, self.writer = os.pipe()
        self.channel = WorkerChannel()
        row = self.handover.scoreboard.row(0)
        self.handover.scoreboard.publish(frozenset({0}))
        settings = Settings(workers=2, scheduling=scheduling)
        self.context = WorkerContext(
            0,
            2,
            1,
            0,
            row,
            self.channel,
            self.lifeline,
            settings,
            self.handover,
            RequestTable(1),
            1,
            self.cluster,
            "",
        )
        self.told: list[object] = []

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self.told.append("watch")

    def beat(self) -> None: ...

    def on_started(self) -> None:
        self.told.append("started")

    def on_answered(self) -> None:
        self.told.append("answered")

    def answer_beside(self) -> None: ...

    def on_signal(self, number: signal.Signals) -> None:
        self.told.append(number)

    def is_told_to_end(self) -> bool:
        return True

    async def on_drained(self, patience: float) -> bool:
        self.told.append("drained")
        return False

    def end_in_any_case(self) -> None:
        self.told.append("end in any case")

    def close(self) -> None:
        self.channel.close()
        self.handover.inboxes.close()
        self.cluster.close()
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
        board.row(ROWS_PER_SLOT)[Item.BEAT_DUE] = time.monotonic() + PATIENCE
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
        self.server.signals.release()
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
