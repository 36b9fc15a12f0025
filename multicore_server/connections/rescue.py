"""Hands idle connections of a worker with a blocked event loop to siblings, by a thread of the worker.

The loop's thread may continue at any moment. So every step is either harmless or can be undone. The thread
claims the connection (only one thread can win this), duplicates its descriptor, and keeps the loop from
reading it. If the loop's thread is still within the app's code then, and nothing has arrived on the
connection, then nobody has read from it and nobody will: the thread sends it. The loop drops its own side of
the connection when it runs again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from multicore_server.connections.dispatcher import SENT, Dispatcher
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.protocol import ASKED, WAITING, MovableProtocol
from multicore_server.connections.reading import Reading
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Item

BATCH = 8  # connections that go to one sibling: several share the work
MOST = 256  # connections of one `run`: between two, the thread looks whether the loop still stands


class Taken(NamedTuple):
    connection: MovableProtocol
    sent: Sent  # a descriptor of its own


class Rescue:
    """``dispatcher`` is one of the thread's own. ``is_in_app`` tells whether the loop's thread is within code
    of the app. ``soon`` calls a function in the loop, from any thread."""

    def __init__(
        self,
        state: ConnectionsState,
        dispatcher: Dispatcher,
        reading: Reading,
        is_in_app: Callable[[], bool],
        soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self._state = state
        self._row = state.row
        self._connections: set[Any] = state.connections
        self._dispatcher = dispatcher
        self._reading = reading
        self._is_in_app = is_in_app
        self._soon = soon
        self._gone: list[MovableProtocol] = []

    def run(self) -> int:
        """Hand idle connections to siblings; how many have gone."""
        idle: list[Any] = [it for it in list(self._connections) if self._may_go(it)][:MOST]
        before = len(self._gone)
        for start in range(0, len(idle), BATCH):
            if not self._dispatcher.siblings.serving() or not self._hand_over(idle[start : start + BATCH]):
                break
        gone = len(self._gone) - before
        if gone:
            self._soon(self._let_go)
        return gone

    def _hand_over(self, connections: Sequence[MovableProtocol]) -> bool:
        """Whether there is more to be done."""
        if not self._is_in_app():
            return False
        taken = [it for it in map(self._take, connections) if it is not None]
        if self._is_in_app():
            taken = self._untouched(taken)
            sent = bool(taken) and self._dispatcher.give([it.sent for it in taken]) is SENT
        else:
            sent = False
        for it in taken:
            if sent:
                os.close(it.sent.descriptor)
                self._gone.append(it.connection)
            else:
                self._give_back(it)
        return sent or not taken

    def _take(self, connection: MovableProtocol) -> Taken | None:
        """Claim it: from now on the loop's thread neither reads it nor sends it anywhere."""
        try:
            self._connections.remove(connection)
        except KeyError:  # it is closed, or gone
            return None
        connection.claimed = True
        try:
            descriptor = os.dup(connection.transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptors, or it is closed
            self._free(connection)
            return None
        if self._reading.stop(connection, descriptor):
            kind = Kind.NEW if connection.phase == WAITING else Kind.KEPT_ALIVE
            return Taken(connection, Sent(kind, descriptor))
        os.close(descriptor)
        self._free(connection)
        return None

    def _untouched(self, taken: Sequence[Taken]) -> list[Taken]:
        """Those of which nothing has come; the others stay."""
        kept = []
        for it in taken:
            if self._reading.is_stopped(it.connection) and self._may_go(it.connection, claimed=True):
                kept.append(it)
            else:
                self._give_back(it)
        return kept

    def _give_back(self, taken: Taken) -> None:
        os.close(taken.sent.descriptor)
        if not taken.connection.transport.is_closing():
            self._reading.resume(taken.connection)
        self._free(taken.connection)

    def _free(self, connection: MovableProtocol) -> None:
        connection.claimed = False
        self._connections.add(connection)
        if connection.moved or connection.transport.is_closing():  # the loop has struck it off before that
            self._connections.discard(connection)

    def _let_go(self) -> None:
        """In the loop: close what is another worker's now."""
        gone, self._gone[:] = list(self._gone), []
        self._row[Item.MIGRATED] += len(gone)
        for connection in gone:
            if not connection.moved:
                connection.let_go()

    def _may_go(self, connection: Any, *, claimed: bool = False) -> bool:
        return (
            isinstance(connection, MovableProtocol)
            and connection.claimed is claimed
            and connection.phase != ASKED
            and not connection.stays
            and connection.transport is not None
            and connection.settled_at <= self._state.beats  # see `Reading`
            and connection.transport.get_extra_info("sslcontext") is None
            and connection.transport.is_reading()  # one that is paused is about to leave
            and connection.is_untouched
        )
