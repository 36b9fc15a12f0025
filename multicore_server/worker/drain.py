"""Ends a worker's connections.

Idle connections move to siblings, requests that have begun to arrive are answered, and connections that
cannot move are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.inboxes import BATCH
from multicore_server.connections.leaving import send_idle
from multicore_server.connections.protocol import MovableProtocol
from multicore_server.connections.state import ConnectionsState

logger = logging.getLogger("gunicorn.error")

LINGER = 0.5  # seconds that an idle connection gets to send a request that is already on its way
HANDSHAKE = 3.0  # seconds that TLS handshakes get when a worker retires
ACCEPT = 1.0  # seconds that an app gets to accept or refuse a WebSocket, where that one would end at once
FAREWELL = 0.5  # seconds before the end of graceful_timeout at which WebSockets are told
LOOK = 0.02  # seconds between two looks at the connections that are left
PACE = 0.005  # seconds until a sibling that had enough is asked again


class Drain:
    """Looks at the connections, some in each turn of the loop, until none is left or the ``deadline`` comes.

    ``deadline`` is a time of CLOCK_MONOTONIC; ``tick`` is called at each look, and says whether to end early.
    """

    def __init__(
        self,
        state: ConnectionsState,
        acceptor: Acceptor,
        deadline: float,
        tick: Callable[[], Awaitable[bool]],
    ) -> None:
        self._state = state
        self._acceptor = acceptor
        self._deadline = deadline
        self._tick = tick
        self._told: set[Any] = set()
        self._handshakes: dict[Any, float] = {}  # when they were first seen here
        self._started = time.monotonic()

    async def run(self) -> None:
        while self._is_busy() and time.monotonic() < self._deadline and not await self._tick():
            await self._look()
            await asyncio.sleep(LOOK)

    def _is_busy(self) -> bool:
        # A task that was cancelled before its first step is still among the tasks.
        tasks = any(not task.done() for task in self._state.tasks)
        if self._state.connections or tasks or self._state.lingering:
            return True
        # A TLS connection is not among the connections before its handshake is done. Adopted here, its task
        # tells; accepted by uvicorn (scheduling = shared), nothing does.
        unseen = LINGER if self._acceptor.config.ssl and self._acceptor.dispatcher is None else LOOK
        return time.monotonic() < self._started + (HANDSHAKE if self._acceptor.adopting else unseen)

    async def _look(self) -> None:
        connections: list[Any] = list(self._state.connections)
        for start in range(0, len(connections), BATCH):
            some = connections[start : start + BATCH]
            await self._move(some)
            for connection in some:
                try:
                    self._look_at(connection)
                except Exception as exc:  # noqa: BLE001, PERF203 - one that is broken cuts no other short
                    logger.debug("a connection could not be looked at: %r", exc)
            await asyncio.sleep(0)  # requests in progress have their turn

    async def _move(self, some: list[Any]) -> None:
        """Give what is idle to a sibling, at its pace: until it takes more, requests are answered here."""
        forced = False
        while not forced:
            self._state.moving = self._acceptor.has_sibling  # a successor may come late
            if self._is_late:
                self._acceptor.hurry()
            movable = [it for it in some if isinstance(it, MovableProtocol) and it.can_leave]
            if send_idle(movable, self._state) or self._is_late:
                return
            await asyncio.sleep(PACE)
            forced = await self._tick()

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline - FAREWELL

    def _look_at(self, connection: Any) -> None:
        if connection not in self._state.connections:  # it has left or is closed
            return
        if connection.transport.is_closing():
            hang_up(connection.transport)
        elif isinstance(connection, MovableProtocol):
            if not (connection.can_leave and connection.is_movable):
                self._let_end(connection)
        elif connection not in self._told and not self._may_go_on(connection):
            self._told.add(connection)
            connection.shutdown()  # WebSockets get 1012, "service restart", in a handshake 500

    def _may_go_on(self, connection: Any) -> bool:
        """Whether a WebSocket is not told yet: while siblings serve, it has all of graceful_timeout; where
        none does, an accepted one would end at once, and the app gets a moment to answer a handshake."""
        if self._is_late:
            return False
        if self._acceptor.others_serve:
            return True
        now = time.monotonic()
        return is_handshaking(connection) and now < self._handshakes.setdefault(connection, now) + ACCEPT

    def _let_end(self, connection: MovableProtocol) -> None:
        """Close a connection that has been idle for a while; tell the others that this is the end."""
        if connection.transport.get_write_buffer_size():  # its client is still reading
            connection.answered_at = time.monotonic()
        idle_since = max(self._started, connection.answered_at)
        if connection.idle and time.monotonic() >= idle_since + LINGER and not connection.has_unread:
            connection.close()
        else:
            connection.announce_end()


def is_handshaking(connection: Any) -> bool:
    """Whether this is a WebSocket whose app has neither accepted nor refused it yet: a begun request."""
    if hasattr(connection, "handshake_complete"):
        return not connection.handshake_complete
    event = getattr(connection, "handshake_completed_event", None)
    return event is not None and not event.is_set()


def hang_up(transport: Any) -> None:
    """A TLS connection that is closed waits for its client's goodbye, and a client's pool may never say it.

    Once ours is sent, an end of what we read stands for it: the rest of the way is the transport's own.
    """
    try:
        if transport.get_extra_info("ssl_object") is None or transport.get_write_buffer_size():
            return
    except AttributeError:  # asyncio's, closed twice: it forgets its TLS protocol, which ends by itself
        return
    connection = transport.get_extra_info("socket")
    if connection is None:  # closed meanwhile, and so it may be below
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RD)


def shut(connection: Any) -> None:
    """Close it; a WebSocket says why."""
    if isinstance(connection, MovableProtocol):
        connection.transport.close()
    else:
        connection.shutdown()
