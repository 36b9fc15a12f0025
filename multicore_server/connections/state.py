"""What the connections of a worker share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from uvicorn.server import ServerState

from multicore_server.connections.dispatcher import KEPT, Outcome
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.limits import Limits
from multicore_server.connections.spool import Spools
from multicore_server.ipc.scoreboard import Row

CLOSE = (b"connection", b"close")

Send = Callable[[Sequence[Sent]], Outcome]


def keep(connections: Sequence[Sent]) -> Outcome:  # noqa: ARG001 - as `Send`
    """Where there is nobody to give connections to."""
    return KEPT


class ConnectionsState(ServerState):
    """What the connections of a worker share, and what they may ask of it.

    Four callables are None while nothing is to be done there, so that a request or a connection pays for
    a comparison and not for a call: ``dispatch`` places a connection that was just accepted; ``wake`` ends a
    rest; ``tell`` is called with a connection after each of its responses; ``progressed`` is the gate's.
    """

    def __init__(self, row: Row, gate: OpenGate) -> None:
        super().__init__()
        self.row = row
        self.loop: Any = None  # the running one, if it is known: to ask for it is a system call
        self.gate = gate
        self.dispatch: Callable[[Kind, int], Outcome] | None = None
        # Takes a new connection where that needs no choice; where it does not, it is dispatched.
        self.takes: Callable[[], bool] = lambda: False
        self.wake: Callable[[], None] | None = None  # while the worker rests, called as something comes
        self.tell: Callable[[Any], None] | None = None
        self.progressed = gate.progressed
        self.hand_over: Send = keep  # gives idle connections to a sibling
        self.set_aside: Send = keep  # puts what would wait here for long where siblings can take it
        self.leave_soon: Callable[[Any], None] | None = None
        self.sheds: Callable[[], bool] = lambda: False  # whether idle connections are to leave
        self.limits = Limits()
        self.lingering: set[Any] = set()  # transports whose clients still send, and nobody reads
        self.spools: Spools | None = None  # for the responses of apps that cannot wait for a client
        self.direct: Any = None  # begins requests whose app needs no task
        self.scheduled = 0  # requests that it serves in this turn of the loop or the next
        self.joins_chunks = True  # parts of a response that come at once may leave at once
        self.is_brisk = True  # the loop was not blocked lately: what is done in one turn takes milliseconds
        self.answers_half_closed = False  # a client that sends no more gets its response; uvicorn closes
        self.draining = False
        self.beats = 0  # of the heart
        self.moving = False  # while it drains: siblings take its idle connections

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Count it among the tasks until it ends."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def descriptors(self) -> Iterator[int]:
        """Of all connections, WebSockets too."""
        for connection in list(self.connections):
            with contextlib.suppress(AttributeError):  # asyncio's TLS transport, closed, has lost its parts
                if held := connection.transport.get_extra_info("socket"):
                    yield held.fileno()

    @property
    def last_headers(self) -> list[tuple[bytes, bytes]]:
        """The default headers of a connection's last response."""
        headers = self.default_headers
        return headers if CLOSE in headers else [*headers, CLOSE]
