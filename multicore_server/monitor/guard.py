"""HTTP connections that a hostile or slow scraper cannot hold: limits on their number, size and time.

uvicorn has a limit for idle connections and one for the size of a head; the rest is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are seconds, sizes bytes."""

    connections: int = 64
    head: int = 16384  # of a request
    request: float = 5.0  # until a request has arrived in whole
    response: float = 10.0  # during which a part of a response waits for its reader
    keep_alive: int = 60  # Prometheus comes back once a minute, or more often
    give_way: float = 1.0  # a connection that has been idle for this long gives way to a new one
    farewell: float = 0.2  # for the requests in hand, at the end


class GuardedState(ServerState):
    """What the connections of a server share."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits

    def make_room(self) -> bool:
        """Whether there is room for one more: if need be, in place of one that has long been idle."""
        if len(self.connections) < self.limits.connections:
            return True
        everyone: list[Any] = list(self.connections)
        oldest = min(everyone, key=attrgetter("idle_since"))
        if time.monotonic() - oldest.idle_since < self.limits.give_way:
            return False
        oldest.cut()
        self.connections.discard(oldest)
        return True


class Alarm:
    """Calls ``ring`` when its time has come, unless it is cleared before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """One that is set already stays as it is."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._ring)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Guarded(H11Protocol):
    """One connection. ``idle_since``: since when nothing has come and nothing is awaited, else infinite."""

    server_state: GuardedState

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.refused = False
        self.idle_since = float("inf")
        self._arrival = Alarm(self.loop, self.cut)
        self._departure = Alarm(self.loop, self.cut)

    def connection_made(self, transport: Any) -> None:
        if not self.server_state.make_room():
            self.refused = True
            transport.abort()
            return
        super().connection_made(transport)
        _give_up_after(self.server_state.limits.response, transport.get_extra_info("socket"))
        # So that `pause_writing` means: not all of it has gone; `resume_writing`: now it has.
        transport.set_write_buffer_limits(high=0)
        self.idle_since = time.monotonic()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.refused:
            super().connection_lost(exc)
            self._arrival.clear()
            self._departure.clear()

    # --- requests arrive ---

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self.idle_since = float("inf")
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and not the next one's, which was here already
            self.idle_since = time.monotonic()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:  # a response has begun: there is no place for another
            self.cut()

    def _watch(self) -> None:
        """A request that has begun to arrive, and the first one, has a time to arrive in."""
        if self.transport.is_closing() or not self._is_arriving():
            self._arrival.clear()
        else:
            self._arrival.set(self.server_state.limits.request)

    def _is_arriving(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.more_body:
            return True
        # uvicorn's own timer is for connections of which nothing has come since their last response.
        resting = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        return cycle.response_complete and not resting

    # --- responses leave ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._departure.set(self.server_state.limits.response)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._departure.clear()

    def cut(self) -> None:
        """End it at once, also what the kernel has not sent yet."""
        connection: socket.socket = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


def _give_up_after(seconds: float, connection: socket.socket) -> None:
    """For what the kernel has taken and the client does not take from it (TCP_USER_TIMEOUT, tcp(7))."""
    if sys.platform == "linux" and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # the client is gone
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
