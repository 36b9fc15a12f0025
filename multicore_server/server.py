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

from multicore_server.connections.door import Door
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.protocol import Gentle, State, is_handshaking

if TYPE_CHECKING:
    from multicore_server.worker import Worker

logger = logging.getLogger("gunicorn.error")

BEAT = 0.25  # seconds between two heartbeats of a worker that is on its own
BEAT_AMONG_SIBLINGS = 0.05  # they pass over a worker whose heart has not beaten for a while, see `STALE`
TAKE = 64  # connections taken from the inbox before others get a turn
LINGER = 0.5  # seconds that an idle connection gets to send a request that is already on its way
LOOK = 0.02  # seconds between two looks at the connections that are left
CANCEL_GRACE = 0.25  # seconds for cancelled requests to answer 500
LIFESPAN_GRACE = 1.0  # seconds for the app's lifespan shutdown when there is no time left


class Server(uvicorn.Server):
    """Serves until it is told to stop; tells its worker when it is ready."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        self.server_state = self._state = State(self)
        self.inline = worker.interface == "wsgi" and worker.cfg.threads == 1
        self.door: Door | None = None
        self._taking = False
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
        if self.worker.seat.exchange is None:
            await super().startup(sockets)
            return
        await super().startup([])
        self.door = Door(
            self.worker.seat.exchange, self.worker.seat.instance, self.worker.seat.row, self._adopt_soon
        )
        for listener in sockets or []:
            await self._open(listener)
        self.door.open()
        self._take_on()

    async def _open(self, listener: socket.socket) -> None:
        """Accept; with TLS, before the handshake, as its keys could not be handed over."""
        factory = self._protocol if self.config.ssl is None else lambda: _Doorman(self)
        backlog = self.config.backlog
        self.servers.append(await self._loop.create_server(factory, sock=listener, backlog=backlog))

    def _protocol(self) -> Any:
        protocol: Any = self.config.http_protocol_class
        state = self.lifespan.state
        return protocol(self.config, self.server_state, app_state=state, _loop=self._loop)

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
        if self.door is not None:
            self.door.connections(len(self.server_state.connections))  # WebSockets do not tell
            self.door.sweep()
        loop.call_later(BEAT if self.door is None else BEAT_AMONG_SIBLINGS, self._beat, loop)

    # --- connections come and go ---

    def keeps(self, transport: Any) -> bool:
        """Whether a connection that was accepted here stays here."""
        return self.door is None or self.door.keeps(Kind.NEW, transport.get_extra_info("socket").fileno())

    def passes_on(self, kind: Kind, descriptor: int) -> bool:
        return self.door is not None and self.door.passes_on(kind, descriptor)

    def busier(self, by: int) -> None:
        if self.door is not None:
            self.door.busier(by)

    def relieved(self) -> None:
        """A response is complete; an app that runs inline has time for another connection."""
        if self.inline and not self._taking and not self._state.asked and not self._state.draining:
            self._take_on()

    def _take_on(self) -> None:
        if self.door is not None:
            self._taking = True
            self._loop.add_reader(self.door.inbox, self._take)

    def _take_no_more(self) -> None:
        if self.door is not None and self._taking:
            self._taking = False
            self._loop.remove_reader(self.door.inbox)

    def _take(self) -> None:
        """Take what lies in the inbox; inline, only while no request of our own awaits its response: one
        that takes long would hold up what siblings could answer."""
        assert self.door is not None
        for _ in range(1 if self.inline else TAKE):
            if self.inline and self._state.asked:
                self._take_no_more()
                return
            if not self.door.take():
                return

    def _adopt_soon(self, handed: Handed) -> None:
        task = self._loop.create_task(self._adopt(handed))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)

    async def _adopt(self, handed: Handed) -> None:
        """Make a connection our own that another worker has accepted, or we ourselves before its TLS."""
        protocol = self._protocol()
        protocol.handed = handed.kind
        handed.connection.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, handed.connection, ssl=self.config.ssl)
        except OSError as exc:  # a failed TLS handshake, or it is closed already
            logger.debug("%s a connection came to nothing: %s", self.worker.identity, exc)
            handed.connection.close()
            if not protocol.answered_at and not protocol.waiting and handed.kind is Kind.NEW:
                self.busier(-1)

    # --- the end ---

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._close_door(sockets or [])
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

    def _close_door(self, listeners: list[socket.socket]) -> None:
        """Take no more; what has come siblings take, or we do: also what the kernel has for the last one."""
        if self.door is None:
            return
        self._take_no_more()
        self.door.close()
        self._state.moving = self.door.has_sibling()
        self.door.empty()
        if not self._state.moving:
            for listener in listeners:
                self._accept_backlog(listener)

    def _accept_backlog(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        with contextlib.suppress(OSError):  # until there are no more
            while True:
                connection, _ = listener.accept()
                self.busier(1)
                self._adopt_soon(Handed(Kind.NEW, connection))

    async def _drain(self, deadline: float) -> None:
        """Wait for the requests that have begun to arrive to be answered and for the connections to close."""
        started = time.monotonic()
        # A TLS connection is not among the connections before its handshake is done.
        least = started + (LINGER if self.config.ssl else LOOK)
        told: set[Any] = set()
        while self._is_busy(least) and time.monotonic() < deadline and not self.force_exit:
            await self.on_tick(0)  # the Date header
            self._state.moving = self._state.moving and self.door is not None and self.door.has_sibling()
            for connection in list(self.server_state.connections):
                if connection.transport.is_closing():
                    _hang_up(connection.transport)
                elif isinstance(connection, Gentle):
                    if not (connection.can_leave and connection.leave()):
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


class _Doorman(asyncio.Protocol):
    """Places a connection before anything of it is read, then lets go of it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def connection_made(self, transport: Any) -> None:
        if self.server.keeps(transport):
            duplicate = os.dup(transport.get_extra_info("socket").fileno())
            self.server._adopt_soon(Handed(Kind.NEW, socket.socket(fileno=duplicate)))
        transport.abort()  # closes this descriptor only


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
