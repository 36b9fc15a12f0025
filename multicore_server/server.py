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
from multicore_server.connections.placement import STALE
from multicore_server.protocol import CONNECTIONS, IN_HAND, Gentle, State, hang_up, is_handshaking, shut

if TYPE_CHECKING:
    from multicore_server.worker import Worker

logger = logging.getLogger("gunicorn.error")

BEAT = 0.15  # seconds between two heartbeats of a worker that is on its own: less than `STALE`
BEAT_AMONG_SIBLINGS = 0.08  # they pass over a worker whose heart has not beaten for a while, see `STALE`
TAKE = 64  # connections taken from the inbox before others get a turn
LINGER = 0.5  # seconds that an idle connection gets to send a request that is already on its way
HANDSHAKE = 3.0  # seconds that TLS handshakes get when a worker retires
FAREWELL = 0.5  # seconds before the end of graceful_timeout at which WebSockets are told
LOOK = 0.02  # seconds between two looks at the connections that are left
CANCEL_GRACE = 0.25  # seconds for cancelled requests to answer 500
LIFESPAN_GRACE = 1.0  # seconds for the app's lifespan shutdown when there is no time left


class Server(uvicorn.Server):
    """Serves until it is told to stop; tells its worker when it is ready."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker
        row = worker.seat.row
        row[IN_HAND] = row[CONNECTIONS] = 0  # the row's last owner may have been killed
        self.server_state = self._state = State(self, row)
        self.inline = worker.interface == "wsgi" and worker.cfg.threads == 1
        self.door: Door | None = None
        self._taking = False
        self._refused_at = 0.0  # since when nothing is taken from the inbox
        self._adopting: set[asyncio.Task[None]] = set()
        if worker.cfg.max_requests or self.inline:
            self._state.tell = self.on_answered
        self._told = asyncio.Event()
        self._gave_up = False  # requests were cancelled
        self._app_ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def stop(self, *, quick: bool = False) -> None:
        """Begin to drain; ``quick``: without waiting for the requests in hand."""
        self.should_exit = True
        self.force_exit = self.force_exit or quick
        self._begin_to_drain()
        self._told.set()

    def _begin_to_drain(self) -> None:
        """At once: until the loop comes to `shutdown`, responses are complete that are the last."""
        self._state.moving = self.door is not None and self.door.has_sibling()
        self._state.draining = True
        self._state.tell = self.on_answered

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
        if not self.started:  # uvicorn before 0.47 does not exit when the app's startup has failed
            return
        self.door = Door(
            self.worker.seat.exchange, self.worker.seat.instance, self.worker.seat.row, self._adopt_soon
        )
        for listener in sockets or []:
            await self._open(listener)
        self._state.keeps = self.keeps
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

    def on_answered(self, connection: Gentle) -> None:
        """A response is complete."""
        if self._state.draining:
            connection.ends()
        else:
            self.worker.on_answered()
            self._take_on()

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
            state = self.server_state
            self.door.beat(len(state.connections), state.total_requests, self._awaited())
            if not self._state.draining:
                self.door.sweep()
                self._look_after_inbox(self.door)
        alone = self.door is None or self.door.alone
        loop.call_later(BEAT if alone else BEAT_AMONG_SIBLINGS, self._beat, loop)

    # --- connections come and go ---

    def keeps(self, transport: Any) -> bool:
        """Whether a connection that was accepted here stays here."""
        door = self.door
        if door is None or door.has_time():
            return True
        return door.keeps(Kind.NEW, transport.get_extra_info("socket").fileno())

    def passes_on(self, kind: Kind, descriptor: int) -> bool:
        return self.door is not None and self.door.passes_on(kind, descriptor)

    def _take_on(self) -> None:
        if self.door is not None and not self._taking and not self._awaited():
            self._taking = True
            self._loop.add_reader(self.door.inbox, self._take)

    def _take_no_more(self) -> None:
        if self.door is not None and self._taking:
            self._taking = False
            self._refused_at = time.monotonic()
            self._loop.remove_reader(self.door.inbox)

    def _look_after_inbox(self, door: Door) -> None:
        """At each heartbeat. What could not be taken for long, siblings may have time for meanwhile; and an
        app that is asked without a pause must not keep new connections waiting for ever."""
        self._take_on()
        if not self._taking and time.monotonic() - self._refused_at > STALE:
            door.place_inbox_anew()

    def _awaited(self) -> bool:
        """Whether an app that runs inline has been asked for something and has not answered yet."""
        return self.inline and any(getattr(c, "awaited", False) for c in self.server_state.connections)

    def _take(self) -> None:
        """Take what lies in the inbox; inline, only while no request of our own awaits its response: one
        that takes long would hold up what siblings could answer."""
        assert self.door is not None
        for _ in range(min(self.door.waiting, 1 if self.inline else TAKE)):
            if self._awaited() or not self.door.take():  # or there is no descriptor left
                self._take_no_more()
                return

    def _adopt_soon(self, handed: Handed) -> None:
        task = self._loop.create_task(self._adopt(handed))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    def adopt_duplicate(self, descriptor: int) -> None:
        """Without a descriptor to spare, by way of our own inbox."""
        assert self.door is not None
        try:
            duplicate = os.dup(descriptor)
        except OSError:
            self._state.row[IN_HAND] -= 1  # it is counted anew when it is taken
            self.door.defer(descriptor)
        else:
            self._adopt_soon(Handed(Kind.NEW, socket.socket(fileno=duplicate)))

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
            if not protocol.transport and handed.kind is Kind.NEW:
                self._state.row[IN_HAND] -= 1

    # --- the end ---

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._stop_accepting(sockets or [])
        self._close_door(sockets or [])
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        if not self.force_exit:
            await self._drain(deadline)
        await self._cancel_requests()
        for connection in list(self.server_state.connections):
            shut(connection)
        await self._end_lifespan(deadline)
        if self._gave_up:
            self.worker.end_in_any_case()

    async def _stop_accepting(self, listeners: list[socket.socket]) -> None:
        """asyncio accepts in one step and makes transports in the next; closing its server drops what is
        between the two."""
        for listener in listeners:
            self._loop.remove_reader(listener)
        await asyncio.sleep(0)

    def _close_door(self, listeners: list[socket.socket]) -> None:
        """Take no more; what has come siblings take, or we do: also what the kernel has for the last one."""
        if self.door is None:
            return
        self._take_no_more()
        self.door.close()
        self.door.empty()
        if not self.door.has_sibling():
            self.door.sweep()
            for listener in listeners:
                self._accept_backlog(listener)

    def _accept_backlog(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        with contextlib.suppress(OSError):  # until there are no more
            while True:
                connection, _ = listener.accept()
                self._state.row[IN_HAND] += 1
                self._adopt_soon(Handed(Kind.NEW, connection))

    async def _drain(self, deadline: float) -> None:
        """Wait for the requests that have begun to arrive to be answered and for the connections to close."""
        started = time.monotonic()
        told: set[Any] = set()
        while self._is_busy(started) and time.monotonic() < deadline and not self.force_exit:
            await self.on_tick(0)  # the Date header
            # A successor may come late.
            self._state.moving = self.door is not None and self.door.has_sibling()
            for connection in list(self.server_state.connections):
                if connection.transport.is_closing():
                    hang_up(connection.transport)
                elif isinstance(connection, Gentle):
                    if not (connection.can_leave and connection.leave()):
                        _let_go(connection, started)
                elif connection in told or is_handshaking(connection):
                    continue
                elif not self._state.moving or time.monotonic() >= deadline - FAREWELL:
                    told.add(connection)
                    connection.shutdown()  # WebSockets get 1012, "service restart"
            await asyncio.sleep(LOOK)

    def _is_busy(self, drain_started: float) -> bool:
        if self.server_state.connections or self.server_state.tasks:
            return True
        # A TLS connection is not among the connections before its handshake is done. Adopted here, its task
        # tells; accepted by uvicorn (scheduling = shared), nothing does.
        unseen = LINGER if self.config.ssl and self.door is None else LOOK
        return time.monotonic() < drain_started + (HANDSHAKE if self._adopting else unseen)

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
            self.server.adopt_duplicate(transport.get_extra_info("socket").fileno())
        transport.abort()  # closes this descriptor only


def _let_go(connection: Any, drain_started: float) -> None:
    """Close a connection that has been idle for a while; tell the others that this is the end."""
    if connection.transport.get_write_buffer_size():  # its client is still reading
        connection.answered_at = time.monotonic()
    idle_since = max(drain_started, connection.answered_at)
    if connection.idle and time.monotonic() >= idle_since + LINGER:
        connection.transport.close()
    else:
        connection.announce_end()
