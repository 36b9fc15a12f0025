"""Takes the connections of a worker: from its listeners and from its siblings."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from multicore_server.connections.addresses import Address, only_address
from multicore_server.connections.announcements import Announcements
from multicore_server.connections.dispatcher import KEPT, QUIET, SENT, Dispatcher, Outcome, Swept
from multicore_server.connections.factory import is_movable
from multicore_server.connections.inboxes import Handed, Kind, Sent
from multicore_server.connections.leaving import Leaving
from multicore_server.connections.protocol import (
    CONNECTIONS,
    IN_HAND,
    UNREAD,
    MovableProtocol,
)
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.heartbeat import LATE
from multicore_server.ipc.scoreboard import Item, Scoreboard

TAKE = 64  # connections that are accepted before others get a turn
TURNS = 15  # of the loop in which inboxes are swept, after each heartbeat
READ = 0.005  # seconds in which a connection that was taken has been read, if its request was there
ACCEPTED = Item.ACCEPTED.value
WEBSOCKETS = Item.WEBSOCKETS.value

logger = logging.getLogger("gunicorn.error")


class Acceptor:
    """Accepts connections, places them, and takes those that siblings send.

    ``config`` is uvicorn's; ``make_protocol`` makes the protocol of one connection. ``dispatcher`` is None
    with ``scheduling = shared``: whoever accepts a connection keeps it. ``announcements`` are those of
    proxies, where the PROXY protocol is spoken.
    """

    def __init__(
        self,
        config: Any,
        state: ConnectionsState,
        scoreboard: Scoreboard,
        dispatcher: Dispatcher | None,
        make_protocol: Callable[[], Any],
        announcements: Announcements | None = None,
    ) -> None:
        self.config = config
        self.state = state
        self.row = state.row
        self.scoreboard = scoreboard
        self.dispatcher = dispatcher
        self.adopting: set[asyncio.Task[None]] = set()
        self.make_protocol = make_protocol
        self._announcements = announcements
        self._servers: list[asyncio.AbstractServer] = []  # the loop's own way to accept
        self._listeners: list[socket.socket] = []  # those that are accepted from by hand
        self._probe: socket.socket | None = None  # whatever can be duplicated, if the loop accepts
        self.is_taking = False  # it accepts, and takes what siblings send
        self._complained = -QUIET
        self._refused_at = 0.0  # since when nothing is taken from the inbox
        self._loop = asyncio.get_running_loop()

    async def open(self, listeners: list[socket.socket]) -> None:
        """Accept connections.

        The loop's own way is the fastest, but it places connections late: after the TLS handshake, whose
        keys could not be handed over, and after all that it finds in the same turn, which takes long where
        an app runs inline. There connections are accepted by hand. And where the loop is asyncio's own: its
        way is no faster, and without descriptors it fails some thousand times on end, with a traceback each.
        """
        dispatcher, config = self.dispatcher, self.config
        if self._accepts_by_hand:
            self._listeners = listeners
        else:
            for listener in listeners:
                accepting = partial(self._accepting, only_address(listener))
                server = await self._loop.create_server(
                    accepting, sock=listener, ssl=config.ssl, backlog=config.backlog
                )
                self._servers.append(server)
                self._probe = listener
        if dispatcher is not None:
            self.state.takes, self.state.dispatch = dispatcher.take_new, dispatcher.place
            self.state.set_aside = dispatcher.set_aside
            self.state.hand_over = dispatcher.rebalance
            self.state.sheds = self._sheds
            self.state.leave_soon = Leaving(self.state, self._loop).soon
            dispatcher.open()
        self.take_on()

    @property
    def _accepts_by_hand(self) -> bool:
        # Protocols that are not ours do not place their connections.
        ours = is_movable(self.config.http_protocol_class)
        late = self.config.ssl is not None or self.state.gate.inline or not ours
        early = (self.dispatcher is not None and late) or self._announcements is not None
        return early or isinstance(self._loop, asyncio.BaseEventLoop)

    def begin_to_drain(self) -> None:
        """From now on idle connections leave, all of them. May run inside a signal handler."""
        if self.dispatcher is not None:
            self.state.hand_over = self.dispatcher.hand_over

    def hurry(self) -> None:
        """The drain's time is over soon: it no longer counts how many connections wait for siblings."""
        if self.dispatcher is not None:
            self.state.hand_over = partial(self.dispatcher.hand_over, enough=math.inf)

    def beat(self, connections: int, answered: int) -> None:
        """At each heartbeat: look after what others have left behind, and at how even the shares are."""
        dispatcher, gate = self.dispatcher, self.state.gate
        self._check_descriptors()
        if dispatcher is None:
            self.row[CONNECTIONS] = connections
            self.take_on()
            return
        dispatcher.beat(connections, answered, free=gate.is_open)
        if self.state.draining:
            return
        self._place_anew(dispatcher.sweep)
        self.take_on()
        # What could not be taken for long, siblings may have time for meanwhile; and an app that is asked
        # without a pause must not keep new connections waiting for ever.
        if not self.is_taking and time.monotonic() - self._refused_at > LATE:
            self._place_anew(dispatcher.place_inbox_anew)
        dispatcher.measure_surplus()

    def wake_by(self, wake: Callable[[], None] | None) -> None:
        """Call this, if it is given, as connections and requests come, and when a connection goes to a
        sibling."""
        self.state.wake = wake
        if self.dispatcher is not None:
            self.dispatcher.wake = wake

    @property
    def may_rest(self) -> bool:
        """Whether nothing is to be done before something comes."""
        return self.is_taking and not (
            self.state.draining or self.row[IN_HAND] or self.adopting or self.has_surplus
        )

    @property
    def dozes(self) -> bool:
        """Whether something may come without a call of what `wake_by` was given: messages of WebSockets do,
        and all that comes to protocols which are not ours; or whether there are inboxes to look after."""
        if self.row[WEBSOCKETS] or not is_movable(self.config.http_protocol_class):
            return True
        return self.dispatcher is not None and self.dispatcher.siblings.is_on_duty

    @property
    def has_sibling(self) -> bool:
        """Whether a sibling takes connections."""
        return self.dispatcher is not None and self.dispatcher.siblings.exist()

    @property
    def others_serve(self) -> bool:
        """Whether another worker accepts connections, also where nobody places them."""
        return self.has_sibling if self.dispatcher is not None else bool(self.scoreboard.serving())

    @property
    def has_surplus(self) -> bool:
        """Whether a sibling should have some of this worker's connections."""
        return self.dispatcher is not None and self.dispatcher.surplus > 0

    def _sheds(self) -> bool:
        return self.state.moving if self.state.draining else self.has_surplus

    # --- accepting ---

    def _accepting(self, local: Address) -> Any:
        self.row[ACCEPTED] += 1
        protocol = self.make_protocol()
        protocol.local = local
        return protocol

    def _accept(self, listener: socket.socket) -> None:
        """Accept what has come and place it; inline, nothing behind a request that the app gets now."""
        for _ in range(TAKE):
            if not self.state.gate.is_open:
                self._take_no_more()
                return
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as exc:  # no descriptors: what comes waits in the backlog until a heartbeat
                self._complain(exc)
                self._take_no_more()
                return
            self.row[ACCEPTED] += 1
            if self._place_accepted(connection) is KEPT:
                self._adopt_soon(Handed(Kind.NEW, connection))
            else:
                connection.close()

    def _place_accepted(self, connection: socket.socket) -> Outcome:
        if self.dispatcher is not None:
            return self.dispatcher.dispatch(Kind.NEW, connection.fileno())
        self._count()
        return KEPT

    def _check_descriptors(self) -> None:
        """uvloop says nothing when it can accept no more: it keeps one descriptor in reserve, and with that
        it closes what comes."""
        if self._probe is not None and not self.state.draining:
            try:
                os.close(os.dup(self._probe.fileno()))
            except OSError as exc:
                self._complain(exc, "new ones are closed at once")

    def _complain(self, exc: OSError, meanwhile: str = "they wait for the next try") -> None:
        now = time.monotonic()
        if now - self._complained > QUIET:
            self._complained = now
            logger.warning("no connection can be accepted (%s): %s", exc, meanwhile)

    # --- taking ---

    def take_on(self) -> None:
        """Accept, and take what siblings send, unless this worker drains or is not free."""
        if self.is_taking or self.state.draining or not self.state.gate.is_open:
            return
        self.is_taking = True
        if self.dispatcher is not None:
            self._loop.add_reader(self.dispatcher.inbox, self._take)
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _take_no_more(self) -> None:
        if not self.is_taking:
            return
        self.is_taking = False
        self._refused_at = time.monotonic()
        if self.dispatcher is not None:
            self._loop.remove_reader(self.dispatcher.inbox)
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def _take(self) -> None:
        """Take what is in the inbox, some of it.

        Inline, what takes long would hold up what siblings could answer: new connections are taken only while
        no request of our own awaits its response, and one after the other.
        """
        assert self.dispatcher is not None
        taken = self.dispatcher.take() if self.state.gate.is_open else []
        self._adopt_all(taken)
        if self.state.gate.inline and (not taken or any(handed.kind is Kind.NEW for handed in taken)):
            self._take_no_more()
            self._loop.call_later(READ, self.take_on)
        elif not taken and self.dispatcher.waiting:  # no descriptors are left
            self._take_no_more()

    def _place_anew(self, some: Callable[[], Swept], turns: int = TURNS) -> None:
        """Place what is in inboxes, some in each turn of the loop. It may get into one again."""
        swept = some()
        self._adopt_all(swept.kept)
        if swept.placed and turns and not self.state.draining:
            self._loop.call_soon(self._place_anew, some, turns - 1)

    def _adopt_all(self, connections: list[Handed]) -> None:
        for handed in connections:
            self._adopt_soon(handed)

    def _adopt_soon(self, handed: Handed) -> None:
        task = self._loop.create_task(self._adopt(handed))
        self.adopting.add(task)
        task.add_done_callback(self.adopting.discard)

    async def _adopt(self, handed: Handed) -> None:
        """Make a connection our own that was accepted by hand, here or by another worker."""
        kind, connection = handed
        waits = kind is Kind.NEW and self.state.gate.makes_wait(1)
        if waits and self.state.set_aside([Sent(kind, connection.fileno())]) is SENT:
            connection.close()
            self._uncount(kind)
            return
        protocol = self.make_protocol()
        protocol.handed = kind
        connection.setblocking(False)
        try:
            if self._announcements is not None and kind is Kind.NEW:
                await self._announcements.read(connection, protocol)
            await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self.config.ssl)
        except OSError as exc:  # a failed TLS handshake, or it is closed already
            logger.debug("a connection ended before it was adopted: %s", exc)
            connection.close()
            if not protocol.transport:
                self._uncount(kind)
        else:
            if not isinstance(protocol, MovableProtocol):  # it counts nothing itself
                self._uncount(kind)

    def _count(self) -> None:
        """It is new, and kept."""
        self.row[IN_HAND] += 1
        self.row[UNREAD] += 1

    def _uncount(self, kind: Kind) -> None:
        if kind is Kind.NEW:
            self.row[IN_HAND] -= 1
            self.row[UNREAD] -= 1

    # --- the end ---

    async def close(self, listeners: list[socket.socket]) -> None:
        """Take no more. Siblings take what has come, or we do; the last one takes the backlog too."""
        for listener in listeners:
            self._loop.remove_reader(listener)
        # asyncio accepts in one step and makes transports in the next; closing its server drops what is
        # between the two.
        await asyncio.sleep(0)
        self._take_no_more()
        if self.dispatcher is not None:
            self.dispatcher.close()
            self._adopt_all(self.dispatcher.empty())
            if not self.has_sibling:
                while (swept := self.dispatcher.sweep()).placed:
                    self._adopt_all(swept.kept)
        if not self.others_serve:
            for listener in listeners:
                self._accept_backlog(listener)
        for server in self._servers:
            server.close()
        for listener in listeners:
            listener.close()

    def _accept_backlog(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        while True:
            try:
                connection, _ = listener.accept()
            except ConnectionAbortedError:  # its client has left
                continue
            except BlockingIOError:
                return
            except OSError as exc:  # no descriptors
                self._complain(exc, "those in the backlog are closed, because this worker is the last")
                return
            self.row[ACCEPTED] += 1
            self._count()
            self._adopt_soon(Handed(Kind.NEW, connection))
