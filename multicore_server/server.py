"""uvicorn's server inside a worker: told by events, not polled, with a drain that cuts nothing short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import uvicorn

from multicore_server.protocol import Gentle, State, is_handshaking

if TYPE_CHECKING:
    from multicore_server.worker import Worker

logger = logging.getLogger("gunicorn.error")

BEAT = 0.25  # seconds between two heartbeats
LINGER = 0.5  # seconds that an idle connection gets to send a request that is already on its way
LOOK = 0.02  # seconds between two looks at the connections that are left
CANCEL_GRACE = 0.25  # seconds for cancelled requests to answer 500
LIFESPAN_GRACE = 1.0  # seconds for the app's lifespan shutdown when there is no time left


class Server(uvicorn.Server):
    """Serves until it is told to stop; tells its worker when it is ready."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        self.server_state = self._state = State(worker.on_answered)
        self._told = asyncio.Event()
        self._gave_up = False  # requests were cancelled
        self._app_ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def stop(self, *, quick: bool = False) -> None:
        """Begin to drain; ``quick``: without waiting for the requests in hand."""
        self.should_exit = True
        self.force_exit = self.force_exit or quick
        self._told.set()

    def app_is_ready(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it comes too late
            self._loop.call_soon_threadsafe(self._app_ready.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens only when the app has started and is ready: the addresses are shared by the workers, so
        one that listens gets requests."""
        start_app = self.lifespan.startup

        async def start_and_wait() -> None:
            await start_app()
            if self.worker.waits_for_app and not self.lifespan.should_exit:
                await self._app_ready.wait()

        self._loop.add_reader(self.worker.seat.lifeline, self.worker.on_abandoned)
        self.lifespan.startup = start_and_wait
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The worker handles signals, once it is ready; until then their default, to end, is right."""
        yield

    async def main_loop(self) -> None:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            loop.add_signal_handler(name, self.worker.on_signal, name)
        self.worker.watch(loop)
        await self.on_tick(0)
        self._beat(loop)
        self.worker.on_started()
        while not self.should_exit:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), 1.0)
            await self.on_tick(0)  # the Date header

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self.worker.beat()
        loop.call_later(BEAT, self._beat, loop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        self._state.draining = True
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        if not self.force_exit:
            await self._drain(deadline)
        await self._cancel_requests()
        for connection in list(self.server_state.connections):
            _shut(connection)
        await self._end_lifespan(deadline)
        if self._gave_up:
            self.worker.end_in_any_case()

    async def _drain(self, deadline: float) -> None:
        """Wait for the requests that have begun to arrive to be answered and for the connections to close."""
        started = time.monotonic()
        # A TLS connection is not among the connections before its handshake is done.
        least = started + (LINGER if self.config.ssl else LOOK)
        told: set[Any] = set()
        while self._is_busy(least) and time.monotonic() < deadline and not self.force_exit:
            await self.on_tick(0)  # the Date header
            for connection in list(self.server_state.connections):
                if connection.transport.is_closing():
                    _hang_up(connection.transport)
                elif isinstance(connection, Gentle):
                    _let_go(connection, started)
                elif connection not in told and not is_handshaking(connection):
                    told.add(connection)
                    connection.shutdown()  # WebSockets get 1012, "service restart"
            await asyncio.sleep(LOOK)

    def _is_busy(self, least: float) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks) or time.monotonic() < least

    async def _cancel_requests(self) -> None:
        """What is not done by now gets a moment to say so to its client: uvicorn answers 500."""
        tasks = list(self.server_state.tasks)
        if not tasks:
            return
        if not self.force_exit:
            what = f"requests not done after {self.worker.cfg.graceful_timeout} s (graceful_timeout)"
            logger.error("%s %s: %d; cancelling them", self.worker.identity, what, len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        self._gave_up = True

    async def _end_lifespan(self, deadline: float) -> None:
        """The app's own shutdown: within the rest of graceful_timeout, and shortly where there is none."""
        left = 0.0 if self.force_exit else deadline - time.monotonic()
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), max(left, LIFESPAN_GRACE))
        except asyncio.TimeoutError:
            text = "the app's lifespan shutdown took too long; ending without it"
            logger.error("%s %s", self.worker.identity, text)


def _let_go(connection: Any, drain_started: float) -> None:
    """Close a connection that has been idle for a while; tell the others that this is the end."""
    idle_since = max(drain_started, connection.answered_at)
    if connection.idle and time.monotonic() >= idle_since + LINGER:
        connection.transport.close()
    else:
        connection.announce_end()


def _hang_up(transport: Any) -> None:
    """A TLS connection that is closed waits for its client's goodbye, and a client's pool may never say it.

    Once ours is sent, an end of what we read stands for it: the rest of the way is the transport's own.
    """
    if transport.get_extra_info("ssl_object") is None or transport.get_write_buffer_size():
        return
    with contextlib.suppress(OSError):  # closed meanwhile
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as duplicate:
            duplicate.shutdown(socket.SHUT_RD)


def _shut(connection: Any) -> None:
    if isinstance(connection, Gentle):
        connection.transport.close()
    else:
        connection.shutdown()
