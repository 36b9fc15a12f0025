"""The monitor's process, from the fork to its exit.

It reads what the arbiter and the workers write to shared memory, so they never wait for it. It exits with the
arbiter, or by a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import uvicorn

from multicore_server.ipc.mailboxes import Mailboxes
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import Head, Scoreboard
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.metrics.app.merge import AppMetrics
from multicore_server.monitor.actions import WorkerClient
from multicore_server.monitor.address import BACKLOG
from multicore_server.monitor.allowed_hosts import AllowedHosts
from multicore_server.monitor.commands import ArbiterClient
from multicore_server.monitor.gate import Gate
from multicore_server.monitor.guard import GuardedConnection, GuardedState, MonitorLimits
from multicore_server.monitor.pages import Full, ReadOnly
from multicore_server.monitor.samples import EVERY, Samples
from multicore_server.monitor.scrape import Merge
from multicore_server.monitor.signals import ENDING, HANDLED
from multicore_server.monitor.snapshot import Snapshots
from multicore_server.monitor.view import ReportView

BEAT = 1.0  # seconds between two heartbeats
POLL = 0.02  # seconds between two checks of whether requests are still in progress, at the end
OF_WORKERS = 32  # connections at a time by which workers ask for `metrics_path`


@dataclass(frozen=True, slots=True)
class MonitorContext:
    """What the monitor watches, and where it listens."""

    scoreboard: Scoreboard
    requests: RequestTable  # that workers have in progress
    shared_report: SharedReport
    listener: socket.socket | None  # of `metrics_bind`, for all who want to read
    metrics_listener: socket.socket | None  # for workers, of `metrics_path`: the metrics alone
    command_listener: socket.socket | None  # for commands too
    lifeline: int  # a descriptor that reads EOF when the arbiter is gone
    channel: socket.socket  # to the arbiter, for commands; not blocking
    mailboxes: Mailboxes  # of the workers, for actions, and its own
    log: logging.Logger
    reopen_log: Callable[[], None]
    hosts: frozenset[str] = frozenset()  # that the Host header may name, besides those of allowed_hosts.py
    app_metrics: AppMetrics | None = None
    app_identifier: Callable[[int], str] = str  # of a row, in its files: `app_directory.Directory.identifier`
    limits: MonitorLimits = field(default_factory=MonitorLimits)


def run(context: MonitorContext) -> int:
    """Serve until TERM, INT, QUIT or the arbiter's end; the exit status.

    To be called in the forked process, with signal handlers at their defaults; ``os._exit`` is to follow: a
    merge in progress is not waited for.
    """
    _log_by(context.log)
    loop = asyncio.SelectorEventLoop()  # whatever policy the app has set: this one needs least memory
    asyncio.set_event_loop(loop)
    loop.run_until_complete(Monitor(context, loop).serve())
    return 0


class Monitor:
    def __init__(self, context: MonitorContext, loop: asyncio.AbstractEventLoop) -> None:
        self._context = context
        self._loop = loop
        self._ended = asyncio.Event()
        self._view = view = ReportView(context.shared_report)
        self._samples = Samples(context.scoreboard)
        self._snapshots = Snapshots(
            Merge(context.scoreboard, view, context.app_metrics, context.app_identifier, context.log)
        )
        self._arbiter = ArbiterClient(context.channel)
        self._workers = WorkerClient(context.mailboxes, context.scoreboard)
        read_only = ReadOnly(context.scoreboard, view, self._snapshots, self._samples)
        parts = self._snapshots, self._samples, self._arbiter, self._workers, context.requests
        full = Full(context.scoreboard, view, *parts)
        # Each has connections of its own: however many ask for one, the others are answered.
        of_workers = replace(context.limits, connections=OF_WORKERS, probes=0)
        sites = [
            (read_only.app(AllowedHosts(context.hosts)), context.limits, context.listener),
            (read_only.metrics_app(), of_workers, context.metrics_listener),
            (full.app(), context.limits, context.command_listener),
        ]
        self._servers = [
            (MonitorServer(app, limits, self._ended), listener)
            for app, limits, listener in sites
            if listener is not None
        ]

    async def serve(self) -> None:
        self._handle_signals()
        self._loop.add_reader(self._context.lifeline, self._on_lifeline)
        self._arbiter.listen()
        self._workers.listen()
        self._beat()
        self._sample()
        serving = [server.serve([listener]) for server, listener in self._servers]
        await asyncio.gather(self._ended.wait(), *serving)
        self._snapshots.close()

    def _handle_signals(self) -> None:
        for name in ENDING:
            self._loop.add_signal_handler(name, self._ended.set)
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen_log)
        # Meant for the arbiter, sent to its process group.
        for name in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
            signal.signal(name, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # the arbiter blocked them for the boot

    def _reopen_log(self) -> None:
        try:
            self._context.reopen_log()
        except OSError as exc:
            self._context.log.warning("monitor: a log file could not be reopened: %s", exc)

    def _beat(self) -> None:
        self._context.scoreboard.head[Head.MONITOR_HEARTBEAT] = time.monotonic()
        self._loop.call_later(BEAT, self._beat)

    def _sample(self) -> None:
        self._loop.call_later(EVERY, self._sample)
        try:
            if (report := self._view.report) is not None:
                self._samples.take(report, time.monotonic(), time.time())
        except Exception as exc:  # noqa: BLE001 -- a worker's code may have written anything into what is read
            self._context.log.debug("monitor: there is no sample (%s: %s)", type(exc).__name__, exc)

    def _on_lifeline(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not os.read(self._context.lifeline, 64):
                self._loop.remove_reader(self._context.lifeline)
                self._ended.set()


class MonitorServer(uvicorn.Server):
    """uvicorn's server, with limits for its connections. It ends when the event ``ended`` is set."""

    def __init__(self, app: Gate, limits: MonitorLimits, ended: asyncio.Event) -> None:
        config = uvicorn.Config(
            app,
            http=GuardedConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            workers=1,  # not WEB_CONCURRENCY, which may hold anything
            backlog=BACKLOG,
            timeout_keep_alive=limits.keep_alive,
            h11_max_incomplete_event_size=limits.head,
        )
        super().__init__(config)
        self.server_state = GuardedState(limits)
        self._farewell = limits.farewell
        self._ended = ended

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The monitor handles signals, not uvicorn."""
        yield

    async def main_loop(self) -> None:
        while not self._ended.is_set():
            await self.on_tick(0)  # the Date header
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait a moment for the requests in progress, then close what is left."""
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + self._farewell
        while self.server_state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(POLL)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # Not cancelled: uvicorn would log each with a traceback. Whoever waits for a merge ends with us.


def _log_by(log: logging.Logger) -> None:
    """Send errors of uvicorn and asyncio to the server's log, and drop warnings: clients can cause them."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = list(log.handlers)
        logger.propagate = False
        logger.setLevel(logging.ERROR)
