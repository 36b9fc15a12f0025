"""A pytest plugin: our server, with the least of a worker around it, in the place of uvicorn's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import uvicorn.server
from gunicorn.config import Config as GunicornConfig

from multicore_server.connections.handover import Handover
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.settings.table import Settings
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.server import WorkerServer
from multicore_server.worker.signals import HANDLED

from . import uvicorn_classes

UVICORNS = uvicorn.Server
PATIENCE = 3  # seconds of a drain, where the configuration says nothing: uvicorn waits as long as it takes


class Host:
    """A worker that has no arbiter, and one server."""

    direct = None
    long_requests: Any = None
    identity = "instance=0"
    interface = "asgi3"
    waits_for_app = False

    def __init__(self, config: uvicorn.Config) -> None:
        self.cfg = SimpleNamespace(
            threads=1,
            timeout=30,
            max_requests=0,
            graceful_timeout=config.timeout_graceful_shutdown,
            settings=GunicornConfig().settings,
            get_cmd_args_from_env=list,
        )
        self.server: WorkerServer | None = None
        self._handover = Handover.make(Scoreboard(1), 1)
        self._handover.scoreboard.publish(frozenset({0}))
        self._cluster = ClusterState.make(ROWS_PER_SLOT)
        row, self._lifeline = self._handover.scoreboard.row(0), os.pipe()
        self._channel = WorkerChannel()
        self.context = WorkerContext(
            0, 1, 1, 0, row, self._channel, self._lifeline[0], Settings(workers=1), self._handover,
            RequestTable(1), 1,
            self._cluster, "",
        )  # fmt: skip

    def watch(self, loop: asyncio.AbstractEventLoop) -> None: ...

    def is_told_to_end(self) -> bool:
        return True

    def beat(self) -> None: ...

    def on_started(self) -> None: ...

    def on_answered(self) -> None: ...

    def answer_beside(self) -> None: ...

    def on_signal(self, number: signal.Signals) -> None:
        assert self.server is not None
        self.server.stop()

    async def on_drained(self, patience: float) -> bool:
        return False

    def end_in_any_case(self) -> None: ...

    def close(self) -> None:
        self._channel.close()
        self._handover.inboxes.close()
        self._cluster.close()
        for descriptor in (self._handover.lock, *self._lifeline):
            os.close(descriptor)


class Server(WorkerServer):
    """Made as uvicorn's is, also where no loop runs; what needs one is made when it serves."""

    _listeners: list[socket.socket]
    _end: asyncio.Future[None] | None = None

    def __init__(self, config: uvicorn.Config) -> None:
        UVICORNS.__init__(self, config)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        config = self.config
        if not config.loaded:
            config.load()
        if config.timeout_graceful_shutdown is None:
            config.timeout_graceful_shutdown = PATIENCE
        self._listeners = sockets or [bound(config)]
        for listener in self._listeners:
            listener.listen(config.backlog)
            listener.setblocking(False)
        host = Host(config)
        should_exit = self.should_exit
        WorkerServer.__init__(self, config, host)
        host.server, self.should_exit = self, should_exit
        with signals_put_back():
            try:
                await super().serve(self._listeners)
            finally:
                self.signals.release()
                host.close()
                if sockets is None:
                    self._listeners[0].close()  # after a failed startup, too

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Once: uvicorn's tests call it, and what they began with `serve` ends in it too."""
        if self._end is None:
            self.stop()
            self._end = asyncio.ensure_future(super().shutdown(self._listeners))
        await asyncio.shield(self._end)


def bound(config: uvicorn.Config) -> socket.socket:
    """In a real server the arbiter binds."""
    if config.uds or config.fd is not None or ":" in (config.host or ""):
        return config.bind_socket()
    try:
        return socket.create_server((config.host or "", config.port))
    except OSError:
        raise SystemExit(3) from None


@contextlib.contextmanager
def signals_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


pytest_collection_finish = uvicorn_classes.pytest_collection_finish  # a hook of this plugin's too


def pytest_configure(config: pytest.Config) -> None:
    uvicorn_classes.pytest_configure(config)
    for name in ("uvicorn", "uvicorn.server", "uvicorn.main"):
        vars(importlib.import_module(name))["Server"] = Server  # that is what this is for
