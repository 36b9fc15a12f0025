"""uvicorn's own httptools protocol, movable, with less work for each connection and request."""

from __future__ import annotations

import math
from typing import Any

from uvicorn.logging import TRACE_LOG_LEVEL

from multicore_server.connections.addresses import addresses
from multicore_server.connections.flow import Flow
from multicore_server.connections.known_heads import RecallingHttpTools
from multicore_server.connections.protocol import ASKED, IN_HAND, RESTING, MovableHttpTools

# What a connection has of its own, 30 at most; what a slow client, a sweep or its move adds to it is rare.
ATTRIBUTES = (
    "parser", "pipeline", "app", "row", "phase", "transport", "flow", "server", "client", "scheme", "heard",
    "progress", "size", "rests_until", "scope", "url", "headers", "expect_100_continue", "cycle", "hosts",
    "unfinished", "timeout_keep_alive_task", "answered_at", "handed", "local", "server_state",
    "loop", "tasks", "root_path", "timeout_keep_alive",
)  # fmt: skip


class LeanHttpTools(RecallingHttpTools, MovableHttpTools):
    """Not for a subclass of uvicorn's: that may have its own way with what is done here."""

    flow: Any
    server: Any
    client: Any
    scheme: Any
    logger: Any
    _made_by_uvicorn: Any
    _lost_by_uvicorn: Any
    local: Any = None  # where it came to, if that is known
    settled_at: float = 0
    rests_until = 0.0  # of the loop's clock; 0 while it does not rest

    def _made(self, transport: Any) -> None:
        """As uvicorn does it, with fewer system calls."""
        if self._is_logged():
            self._made_by_uvicorn(transport)
            self.flow = Flow(transport)
            return
        self.connections.add(self)
        self.transport = transport
        self.flow = Flow(transport)
        self.server, self.client = addresses(transport, self.local)
        self.scheme = "http" if transport.get_extra_info("sslcontext") is None else "https"

    def _is_logged(self) -> bool:
        """Whether uvicorn logs that connections come and go. A logger without a level has its parent's."""
        return self.logger.level <= TRACE_LOG_LEVEL and bool(self.logger.isEnabledFor(TRACE_LOG_LEVEL))

    def _lost(self, exc: Exception | None) -> None:
        """As uvicorn does it, with a call only where there is somebody to tell."""
        if self.flow is None or self._is_logged():
            self._lost_by_uvicorn(exc)
            return
        self.connections.discard(self)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.flow.write_paused:
            self.flow.resume_writing()
        if exc is None:
            self.transport.close()
            self.rests_until = 0.0
        self.parser = None

    # One timer for as long as a connection is kept alive: it looks whether the connection still rests. To
    # arm one after each response, and to cancel it before the next, costs more than all else done then.

    def on_response_complete(self) -> None:
        if self.pipeline:
            super().on_response_complete()
            return
        state, flow = self.server_state, self.flow
        state.total_requests += 1
        if (
            flow.was_paused
            or not getattr(self.cycle, "sent_whole", False)
            or self.transport.get_write_buffer_size()
        ):
            self._unsettle()
        if not self.transport.is_closing():
            if flow.read_paused:
                flow.resume_reading()
            self._keep_alive()
        if self.phase == ASKED and self.scope is self.cycle.scope:
            self.phase = RESTING
            self.row[IN_HAND] -= 1
        self._answered(state)

    def _unsettle(self) -> None:
        """Reading was paused, or the client has not taken all at once: the loop may have something to tell
        epoll, which it does before it waits the next time. Between two beats it waits."""
        self.flow.was_paused = False
        unsent = self.transport.get_write_buffer_size()
        self.settled_at = math.inf if unsent else self.server_state.beats + 2

    def _keep_alive(self) -> None:
        self.rests_until = self.loop.time() + self.timeout_keep_alive
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_at(self.rests_until, self._look_whether_it_rests)

    def _look_whether_it_rests(self) -> None:
        self.timeout_keep_alive_task = None
        if self.rests_until > self.loop.time():
            self.timeout_keep_alive_task = self.loop.call_at(self.rests_until, self._look_whether_it_rests)
        elif self.rests_until:
            self.timeout_keep_alive_handler()

    def resume_writing(self) -> None:
        """Its client reads what has waited: the time that it may rest begins anew."""
        super().resume_writing()
        if self.rests_until:
            self._keep_alive()

    def _unset_keepalive_if_required(self) -> None:
        """Called as bytes arrive."""
        self.rests_until = 0.0

    def _end_timer(self) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None
        if timer is not None:
            timer.cancel()

    def handle_websocket_upgrade(self, *args: Any) -> None:
        self._end_timer()
        super().handle_websocket_upgrade(*args)
