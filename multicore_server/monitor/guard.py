"""Limits the monitor's HTTP connections: their number, sizes and times.

uvicorn limits how long a connection is idle and how long a head is. The rest is here.
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
from typing import Any, Literal, cast

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from multicore_server.monitor.gate import probes_only

_NO_LINGER = struct.pack("ii", 1, 0)
Pool = Literal["ordinary", "probes"]


@dataclass(frozen=True, slots=True)
class MonitorLimits:
    """Times are seconds, sizes bytes."""

    connections: int = 64
    probes: int = 16  # more connections, which get answers from /healthz and /readyz only
    head: int = 16384  # of a request
    request: float = 5.0  # until a request has arrived in whole
    response: float = 10.0  # during which a part of a response waits for its reader
    keep_alive: int = 60  # Prometheus comes back once a minute, or more often
    give_way: float = 1.0  # at the limit, a client that we have waited for so long is cut for a new one
    probes_give_way: float = 0.1  # the same among the probes, which send their request at once
    farewell: float = 0.2  # for the requests in progress, at the end


class GuardedState(ServerState):
    """What the connections of a server share."""

    def __init__(self, limits: MonitorLimits) -> None:
        super().__init__()
        self.limits = limits

    def make_room(self) -> Pool | None:
        """Return the pool for one more connection, None if there is no room.

        At the limit, the connection that has waited longest for its client is cut.
        """
        limits = self.limits
        if self._make_room_in("ordinary", limits.connections, limits.give_way):
            return "ordinary"
        if self._make_room_in("probes", limits.probes, limits.probes_give_way):
            return "probes"
        return None

    def _make_room_in(self, pool: Pool, most: int, give_way: float) -> bool:
        everyone = cast("set[GuardedConnection]", self.connections)  # a server has one kind alone
        members = [connection for connection in everyone if connection.pool == pool]
        if len(members) < most:
            return True
        slowest = min(members, key=attrgetter("waiting_since"), default=None)
        if slowest is None or time.monotonic() - slowest.waiting_since < give_way:
            return False
        slowest.cut()
        everyone.discard(slowest)
        return True


class Alarm:
    """A timer that calls ``ring`` once, unless it is cleared before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, seconds: float) -> None:
        """Start the timer; if it runs already, nothing changes."""
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._ring)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GuardedConnection(H11Protocol):
    """One connection.

    ``waiting_since`` is when it began to wait for its client: for a request, for the rest of one, or until
    the client reads the response. It is infinite while the client waits for us.
    """

    server_state: GuardedState

    def __init__(self, *args: Any, **options: Any) -> None:  # uvicorn's, passed on
        super().__init__(*args, **options)
        self.pool: Pool | None = None
        self.waiting_since = float("inf")
        self._arrival = Alarm(self.loop, self.cut)
        self._departure = Alarm(self.loop, self.cut)

    def connection_made(self, transport: Any) -> None:
        self.pool = self.server_state.make_room()
        if self.pool is None:
            transport.abort()
            return
        super().connection_made(transport)
        if self.pool == "probes":
            self.app = probes_only(self.app)
        _give_up_after(self.server_state.limits.response, transport.get_extra_info("socket"))
        # So that `pause_writing` means: not all of it has gone; `resume_writing`: now it has.
        transport.set_write_buffer_limits(high=0)
        self.waiting_since = time.monotonic()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.pool is not None:
            super().connection_lost(exc)
            self._arrival.clear()
            self._departure.clear()

    # --- requests arrive ---

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self._arrival.is_set:
            self.waiting_since = time.monotonic()  # for the rest of a request that begins now
        super().data_received(data)
        self._watch()
        if not self._arrival.is_set:
            self.waiting_since = float("inf")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and not the next one's, which was here already
            self.waiting_since = time.monotonic()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            super().send_400_response(msg)
        else:  # a response has begun: there is no place for another
            self.cut()

    def _watch(self) -> None:
        """Limit the time until the first request, and each request that has begun, has arrived."""
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
        self.waiting_since = time.monotonic()
        self._departure.set(self.server_state.limits.response)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self.waiting_since = float("inf")
        self._departure.clear()

    def cut(self) -> None:
        """Close it at once. Data that the kernel has not sent yet is dropped."""
        connection: socket.socket = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


def _give_up_after(seconds: float, connection: socket.socket) -> None:
    """Have the kernel close a connection whose client does not take its data (TCP_USER_TIMEOUT, tcp(7))."""
    if sys.platform == "linux" and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # the client is gone
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
