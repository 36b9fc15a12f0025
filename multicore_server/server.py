"""uvicorn's server inside a worker: told by events instead of polled, with a drain that cuts nothing short."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

import uvicorn

from multicore_server.protocol import CLOSE, Gentle, State

if TYPE_CHECKING:
    from multicore_server.worker import Worker

logger = logging.getLogger("gunicorn.error")

BEAT = 0.25  # seconds between two heartbeats
LINGER = 0.5  # seconds that an idle connection gets to send a request that is already on its way
LOOK = 0.02  # seconds between two looks at the connections that are left
LIFESPAN_GRACE = 1.5  # seconds for the app's lifespan shutdown when there is no time left


class Server(uvicorn.Server):
    """Serves until it is told to stop; tells its worker when it is ready."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        self.server_state = State()
        self.server_state.on_answered = worker.on_answered
        self._told = asyncio.Event()

    def stop(self, *, quick: bool = False) -> None:
        """Begin to drain; ``quick``: without waiting for the requests in hand."""
        self.should_exit = True
        self.force_exit = self.force_exit or quick
        self._told.set()

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
        for connection in list(self.server_state.connections):
            if not isinstance(connection, Gentle):
                connection.shutdown()  # WebSockets get 1012, "service restart"
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        await self._drain(deadline)
        self._cancel_tasks()
        await self._end_lifespan(deadline)

    async def _drain(self, deadline: float) -> None:
        state = self.server_state
        started = time.monotonic()
        while (state.connections or state.tasks) and not self.force_exit:
            now = time.monotonic()
            if now >= deadline:
                break
            if CLOSE not in state.default_headers:
                state.default_headers = [*state.default_headers, CLOSE]
            self._let_go(lingering=now < started + LINGER)
            await asyncio.sleep(LOOK)
        for connection in list(state.connections):
            connection.transport.close()

    def _let_go(self, *, lingering: bool) -> None:
        for connection in list(self.server_state.connections):
            if not isinstance(connection, Gentle):
                continue
            if connection.idle and not lingering:
                connection.transport.close()
            else:
                connection.end_after_response()

    def _cancel_tasks(self) -> None:
        tasks = list(self.server_state.tasks)
        if tasks and not self.force_exit:
            what = f"{len(tasks)} requests are not done after {self.worker.cfg.graceful_timeout} s"
            logger.error("%s %s (graceful_timeout); cancelling them", self.worker.identity, what)
        for task in tasks:
            task.cancel()

    async def _end_lifespan(self, deadline: float) -> None:
        """The app's own shutdown: within the rest of graceful_timeout, and shortly where there is none."""
        left = 0.0 if self.force_exit else deadline - time.monotonic()
        try:
            await asyncio.wait_for(self.lifespan.shutdown(), max(left, LIFESPAN_GRACE))
        except asyncio.TimeoutError:
            logger.error("%s the app's lifespan shutdown took too long; ending without it", self.worker.identity)
