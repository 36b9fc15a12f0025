"""A worker in this process, with what its arbiter would give it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from multicore_server.connections.handover import Handover
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.settings.table import Settings
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.mailbox import Mailbox
from multicore_server.worker.orders import Orders
from multicore_server.worker.usage import Usage
from multicore_server.worker.worker import Worker

PATIENCE = 10.0  # seconds


SIGNALS = [*Worker.SIGNALS, signal.SIGTTIN, signal.SIGTTOU]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Hired:
    """A worker as the arbiter makes it, and the arbiter's end of its channel."""

    def __init__(self, app: Any = hello, **settings: Any) -> None:
        cfg = Config()
        for name, value in {"keepalive": 5, "graceful_timeout": 2, **settings}.items():
            cfg.set(name, value)
        self.hooks: list[str] = []
        cfg.set("worker_int", lambda worker: self.hooks.append("int"))
        cfg.set("worker_abort", lambda worker: self.hooks.append("abort"))
        self.log = Logger(cfg)
        self.loaded = SimpleNamespace(app_uri="site:app", wsgi=lambda: app)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.worker = Worker(1, os.getpid(), [self.listener], self.loaded, 15, cfg, self.log)
        self.handover = Handover.make(Scoreboard(1), 1)
        self.handover.scoreboard.publish(frozenset({0}))
        self.cluster = ClusterState.make(ROWS_PER_SLOT)
        self.lifeline, self.writer = os.pipe()
        self.channel = WorkerChannel()
        self.row = self.handover.scoreboard.row(0)
        self.worker.context = WorkerContext(
            0,
            1,
            1,
            0,
            self.row,
            self.channel,
            self.lifeline,
            Settings(workers=1),
            self.handover,
            RequestTable(1),
            1,
            self.cluster,
            "",
        )
        self.worker.pid = os.getpid()
        self.worker.usage = Usage(self.row)
        self.worker.mailbox = Mailbox(self.worker.context, self.worker.identity)
        self.worker.orders = Orders(self.channel)
        self.worker.PIPE = list(os.pipe())

    def heard(self) -> list[Any]:
        return list(self.channel.received())

    def close(self) -> None:
        self.channel.close()
        self.worker.tmp.close()
        self.listener.close()
        self.handover.inboxes.close()
        self.cluster.close()
        for descriptor in (self.handover.lock, self.lifeline, self.writer, *self.worker.PIPE):
            try:
                os.close(descriptor)
            except OSError:
                continue


Hire = Callable[..., Hired]
