"""How connections come to a worker, at its listeners and from its siblings, and how it shares them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.connections.protocol import CONNECTIONS, IN_HAND, UNREAD, MovableProtocol
from multicore_server.ipc.heartbeat import UNATTENDED
from multicore_server.ipc.scoreboard import Item

if TYPE_CHECKING:
    from multicore_server.worker.server import WorkerServer

TAKE = 64  # connections taken from the inbox before others get a turn
READ = 0.005  # seconds in which a connection that was taken has been read, if its request was there
ACCEPTED = Item.ACCEPTED.value

logger = logging.getLogger("gunicorn.error")


class Acceptor:
    """``dispatcher`` is None with ``scheduling = shared``: whoever accepts a connection keeps it."""

    def __init__(self, server: WorkerServer) -> None:
        context = server.worker.context
        self.server = server
        self.row = context.row
        self.board = context.handover.scoreboard
        self.dispatcher: Dispatcher | None = None
        if context.settings.scheduling == "least":
            adopt, inline = self._adopt_soon, server.inline
            self.dispatcher = Dispatcher(
                context.handover, context.instance, context.row, adopt, inline=inline
            )
        self.adopting: set[asyncio.Task[None]] = set()
        self.surplus = 0  # connections that a sibling should have
        self._listeners: list[socket.socket] = []  # those that are accepted from by hand
        self._taking = False
        self._refused_at = 0.0  # since when nothing is taken from the inbox
        self._loop = asyncio.get_running_loop()

    async def open(self, listeners: list[socket.socket]) -> None:
        """Accept connections. The loop's own way is the fastest, but it places them late: after the TLS
        handshake, whose keys could not be handed over, and after what it finds in the same turn, which takes
        long where an app runs inline."""
        dispatcher, config = self.dispatcher, self.server.config
        if dispatcher is not None and (config.ssl is not None or self.server.inline):
            self._listeners = listeners
        else:
            for listener in listeners:
                server = self._loop.create_server(
                    self._accepting, sock=listener, ssl=config.ssl, backlog=config.backlog
                )
                self.server.servers.append(await server)
        if dispatcher is not None:
            self.server.state.keeps = self._keeps_transport
            dispatcher.open()
            self.take_on()

    def beat(self, connections: int, answered: int) -> None:
        """At each heartbeat: look after what others have left behind, and at how even the shares are."""
        dispatcher = self.dispatcher
        if dispatcher is None:
            self.row[CONNECTIONS] = connections
            return
        dispatcher.beat(connections, answered, bool(self.server.state.awaited))
        if self.server.state.draining:
            return
        dispatcher.sweep()
        self.take_on()
        # What could not be taken for long, siblings may have time for meanwhile; and an app that is asked
        # without a pause must not keep new connections waiting for ever.
        if not self._taking and time.monotonic() - self._refused_at > UNATTENDED:
            dispatcher.place_inbox_anew()
        self.surplus = dispatcher.surplus()

    @property
    def beats_quickly(self) -> bool:
        """Whether siblings look at this worker's heartbeat."""
        return self.dispatcher is not None and not self.dispatcher.alone

    # --- placing ---

    def _keeps_transport(self, transport: Any) -> bool:
        assert self.dispatcher is not None
        return self.dispatcher.has_time() or self._keeps(transport.get_extra_info("socket"))

    def _keeps(self, connection: Any) -> bool:
        """Whether a connection that was accepted here stays here."""
        assert self.dispatcher is not None
        return self.dispatcher.keeps(Kind.NEW, connection.fileno())

    def _accept(self, listener: socket.socket) -> None:
        """Accept what has come and place it; inline, nothing behind a request that the app gets now."""
        assert self.dispatcher is not None
        for _ in range(TAKE):
            if self.server.state.awaited:
                self._take_no_more()
                return
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:  # no descriptors left
                self.dispatcher.complain("no connection can be accepted (%s)", exc)
                self._take_no_more()
                return
            self.row[ACCEPTED] += 1
            if self.dispatcher.has_time() or self._keeps(connection):
                self._adopt_soon(Handed(Kind.NEW, connection))
            else:
                connection.close()

    def passes_on(self, kind: Kind, descriptor: int) -> bool:
        """Give a connection that is not needed here to a sibling: all of them while the worker drains."""
        dispatcher = self.dispatcher
        if dispatcher is None:
            return False
        if self.server.state.draining:
            return dispatcher.passes_on(kind, descriptor)
        self.surplus -= 1
        return dispatcher.shares(kind, descriptor)

    def sets_aside(self, kind: Kind, descriptor: int) -> bool:
        """Put a connection that is waiting here where siblings can take it, if it would wait for long."""
        dispatcher, waiting = self.dispatcher, len(self.server.state.unread or ())
        return (
            dispatcher is not None
            and not dispatcher.is_quick(waiting)
            and dispatcher.sets_aside(kind, descriptor)
        )

    def has_sibling(self) -> bool:
        """Whether a sibling takes connections."""
        return self.dispatcher is not None and self.dispatcher.has_sibling()

    # --- taking ---

    def take_on(self) -> None:
        """Accept, and take what siblings send."""
        wanted = not (self._taking or self.server.state.draining or self.server.state.awaited)
        if self.dispatcher is not None and wanted:
            self._taking = True
            self._loop.add_reader(self.dispatcher.inbox, self._take)
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)

    def _take_no_more(self) -> None:
        if self.dispatcher is not None and self._taking:
            self._taking = False
            self._refused_at = time.monotonic()
            self._loop.remove_reader(self.dispatcher.inbox)
            for listener in self._listeners:
                self._loop.remove_reader(listener)

    def _take(self) -> None:
        """Take what lies in the inbox. Inline, one that takes long would hold up what siblings could answer:
        then only while no request of our own awaits its response, and one after the other."""
        assert self.dispatcher is not None
        if self.server.inline:
            if not self.server.state.awaited:
                self.dispatcher.take()
            self._take_no_more()
            self._loop.call_later(READ, self.take_on)
            return
        for _ in range(min(self.dispatcher.waiting, TAKE)):
            if not self.dispatcher.take():  # there is no descriptor left
                self._take_no_more()
                return

    def _accepting(self) -> Any:
        self.row[ACCEPTED] += 1
        return self._protocol()

    def _protocol(self) -> Any:
        server = self.server
        protocol: Any = server.config.http_protocol_class
        return protocol(server.config, server.state, app_state=server.lifespan.state, _loop=self._loop)

    def _adopt_soon(self, handed: Handed) -> None:
        task = self._loop.create_task(self._adopt(handed))
        self.adopting.add(task)
        task.add_done_callback(self.adopting.discard)

    async def _adopt(self, handed: Handed) -> None:
        """Make a connection our own that was accepted by hand, here or by another worker."""
        if self.server.state.awaited and self.sets_aside(handed.kind, handed.connection.fileno()):
            handed.connection.close()
            self._uncount(handed.kind)
            return
        protocol = self._protocol()
        protocol.handed = handed.kind
        handed.connection.setblocking(False)
        tls = self.server.config.ssl
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, handed.connection, ssl=tls)
        except OSError as exc:  # a failed TLS handshake, or it is closed already
            logger.debug("%s a connection came to nothing: %s", self.server.worker.identity, exc)
            handed.connection.close()
            if not protocol.transport:
                self._uncount(handed.kind)
        else:
            if not isinstance(protocol, MovableProtocol):  # it counts nothing itself
                self._uncount(handed.kind)

    def _uncount(self, kind: Kind) -> None:
        if kind is Kind.NEW:
            self.row[IN_HAND] -= 1
            self.row[UNREAD] -= 1

    # --- the end ---

    async def close(self, listeners: list[socket.socket]) -> None:
        """Take no more; what has come siblings take, or we do: also what the kernel has for the last one."""
        for listener in listeners:
            self._loop.remove_reader(listener)
        # asyncio accepts in one step and makes transports in the next; closing its server drops what is
        # between the two.
        await asyncio.sleep(0)
        if self.dispatcher is not None:
            self._take_no_more()
            self.dispatcher.close()
            self.dispatcher.empty()
            if not self.dispatcher.has_sibling():
                self.dispatcher.sweep()
        if not (self.has_sibling() if self.dispatcher is not None else self.board.serving()):
            for listener in listeners:
                self._accept_backlog(listener)
        for accepting in self.server.servers:
            accepting.close()
        for listener in listeners:
            listener.close()

    def _accept_backlog(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        try:
            while True:
                connection, _ = listener.accept()
                self.row[ACCEPTED] += 1
                self.row[IN_HAND] += 1
                self.row[UNREAD] += 1
                self._adopt_soon(Handed(Kind.NEW, connection))
        except OSError:  # there are no more
            return
