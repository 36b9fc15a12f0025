"""uvicorn's HTTP protocols, with connections that can move between workers.

A connection that arrives goes to the least loaded worker. An idle connection can move to another worker. If
it cannot, a request that has begun to arrive is answered, and the response says that it is the last.
(uvicorn's own ``shutdown()`` closes a connection whose request has arrived in part, and says nothing to a
client whose response is the last.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from multicore_server.connections.dispatcher import KEPT, SENT, Outcome
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.lingering import UploadTransport
from multicore_server.connections.spool import SpooledTransport, SpoolingProtocol
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Item, Row
from multicore_server.machine.descriptors import has_unread

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
UNREAD = Item.UNREAD.value

# The phases of a connection.
RESTING = 0  # it waits for its next request
WAITING = 1  # it waits for its first request
ASKED = 2  # a request has begun to arrive


class MovableProtocol(SpoolingProtocol):
    """Mixed into a protocol of uvicorn's, whose ``cycle`` is one request and its response.

    The protocol's own methods are ``_made``, ``_lost``, ``_receive`` and ``_complete``: these run for every
    request, and ``super()`` is slow before Python 3.12.
    """

    handed: Kind | None = None  # what it was when it was taken or accepted by hand; it is counted then
    moved = False  # it is another worker's now
    # Of the heart's beats: from then on nothing is left that the loop is to tell epoll of the connection.
    settled_at: float = math.inf
    claimed = False  # a thread hands it to another worker: this one leaves it alone
    stays = False  # a proxy has said here who its client is: a sibling would not know
    phase = RESTING  # in the other phases it is counted as in progress
    answered_at = 0.0  # while the worker drains
    row: Row
    server_state: ConnectionsState
    connections: set[Any]
    loop: Any
    transport: Any
    cycle: Any
    timeout_keep_alive: float
    timeout_keep_alive_task: Any
    _made: Any
    _lost: Any
    _receive: Any
    _complete: Any
    _unset_keepalive_if_required: Any
    end_lingering: Any

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has arrived that is not answered yet."""
        raise NotImplementedError

    @property
    def ends_with_cycle(self) -> bool:
        """Whether nothing of a further request has arrived behind ``cycle``."""
        raise NotImplementedError

    @property
    def is_awaited(self) -> bool:
        """Whether a request has arrived in whole and its response is not complete. One that arrives slowly
        holds nobody up, nor does one whose client has left."""
        cycle = self.cycle
        if cycle is None or cycle.disconnected:
            return False
        return not cycle.more_body and not cycle.response_complete

    # --- it comes ---

    def connection_made(self, transport: Any) -> None:
        state = self.server_state
        self.row = state.row
        if state.wake is not None:
            state.wake()
        if self.handed is None:
            if state.dispatch is None:
                self.row[IN_HAND] += 1
                self.row[UNREAD] += 1
            elif not state.takes() and self._is_placed_elsewhere(transport, state.dispatch):
                return
        if state.spools is not None:
            transport = SpooledTransport(transport, self, state.spools)
        self._made(transport)
        if state.draining:  # its time to send a request begins now
            self.answered_at = time.monotonic()
        if self.handed is Kind.KEPT_ALIVE:
            self.answered_at = time.monotonic()
            self._keep_alive()
            return
        self.phase = WAITING
        if state.gate.inline:
            state.gate.came(self)

    def _is_placed_elsewhere(self, transport: Any, dispatch: Callable[[Kind, int], Outcome]) -> bool:
        if dispatch(Kind.NEW, transport.get_extra_info("socket").fileno()) is KEPT:
            return False
        self.moved = True
        self.server_state.gate.leaves(self)
        transport.abort()  # closes our descriptor only: a sibling has another
        self.break_cycles()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        state = self.server_state
        if self.moved:
            state.gate.went(self)
            return
        if state.spools is not None:
            self.lose_spool()
        if self.timeout_keep_alive_task is not None:
            self._end_timer()  # uvicorn does not where its client has reset the connection
        self._lost(exc)
        self.row[CONNECTIONS] = len(self.connections)
        if self.phase:
            self.finish()
        if state.gate.inline:
            state.gate.went(self)

    def _end_timer(self) -> None:
        self._unset_keepalive_if_required()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        state = self.server_state
        if self.phase != ASKED:
            if state.wake is not None:
                state.wake()
            if self.phase == RESTING:
                self.row[IN_HAND] += 1
            else:
                self._is_read()
            self.phase = ASKED
        if state.draining:
            self._receive_last(data)
        else:
            self._receive(data)
        cycle = self.cycle
        if cycle is not None and cycle.more_body and type(cycle.transport) is not UploadTransport:
            cycle.transport = UploadTransport(cycle.transport, self)
        # The rest of a body whose response is complete, or line breaks: no response will come for these.
        if (cycle is None or cycle.response_complete) and self.phase == ASKED and self.idle:
            self.finish()
            if not (self.transport.is_closing() or (cycle is not None and cycle.more_body)):
                self._keep_alive()
        if state.progressed is not None:
            state.progressed(self)

    def _receive_last(self, data: bytes) -> None:
        """The request that was taken for the last one may not be."""
        if self.cycle is not None:
            self.cycle.default_headers = self.server_state.default_headers
        self._receive(data)
        self.announce_end()

    def on_response_complete(self) -> None:
        self._complete()
        self._answered(self.server_state)

    def _answered(self, state: ConnectionsState) -> None:
        if self.phase and self.idle:
            self.finish()
        if state.progressed is not None:
            state.progressed(self)
        if state.tell is not None:
            state.tell(self)

    def eof_received(self) -> bool:
        """The client sends no more. It closes the connection, or waits for the response to what it has sent:
        who cannot tell answers. Returns whether the loop is to leave the transport open."""
        transport = self.transport
        if not self.server_state.answers_half_closed or transport.get_extra_info("sslcontext") is not None:
            return False
        if self.is_awaited:
            self._answered = self._answer_and_close  # type: ignore[method-assign]
            return True
        transport.close()  # when all of a response is sent
        return True

    def _answer_and_close(self, state: ConnectionsState) -> None:
        """In place of `_answered`, for the responses that a client which sends no more still gets."""
        if not self.is_awaited:
            self.transport.close()
        type(self)._answered(self, state)

    def finish(self) -> None:
        """Nothing is in progress here any more."""
        if self.phase == WAITING:
            self._is_read()
        if self.phase != RESTING:
            self.phase = RESTING
            self.row[IN_HAND] -= 1

    def _is_read(self) -> None:
        """It does not wait for its first request any more."""
        self.row[UNREAD] -= 1
        if self.server_state.gate.inline:
            self.server_state.gate.was_read(self)

    def end(self) -> None:
        """The worker drains, and a response is complete: say that it was the last, or go to a sibling."""
        self.answered_at = time.monotonic()
        if not self.idle:
            self.announce_end()
        else:
            self.leave_soon()

    @property
    def has_unread(self) -> bool:
        """Whether bytes have come that the loop has not read: whoever was paused or starved cannot tell by a
        clock that a client is silent. Closed with bytes unread, the kernel resets the connection."""
        held = self.transport.get_extra_info("socket")
        return held is not None and has_unread(held.fileno())

    def close(self) -> None:
        """It has rested long enough."""
        self.transport.close()

    def linger(self) -> None:
        """Its last response is sent, and the request that it answers has not come in whole."""
        transport = self.transport
        if transport.is_closing() or self not in self.connections:  # it lingers already
            return
        self._unset_keepalive_if_required()
        if transport.get_write_buffer_size():
            transport.close()
        else:
            self.end_lingering("answered before its request was complete")

    def _keep_alive(self) -> None:
        expire = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, expire)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # its client still reads
            self._keep_alive()
        elif not self.has_unread:
            super().timeout_keep_alive_handler()  # type: ignore[misc]  # of the protocol

    def handle_websocket_upgrade(self, *args: Any) -> None:
        super().handle_websocket_upgrade(*args)  # type: ignore[misc]  # of the protocol
        self.finish()

    def announce_end(self) -> None:
        """Let the response to the last request that has begun to arrive be the last of this connection."""
        cycle, state = self.cycle, self.server_state
        if cycle is not None and not cycle.response_started and not self.can_leave:
            cycle.default_headers = state.last_headers if self.ends_with_cycle else state.default_headers

    # --- it goes ---

    @property
    def can_leave(self) -> bool:
        """Whether it may go to a sibling when it is idle: TLS keys are in this process's memory."""
        if self.stays or not self.server_state.sheds():
            return False
        return self.transport.get_extra_info("sslcontext") is None

    def leave_soon(self) -> None:
        """Go to a sibling before the next request is read, if it may."""
        leave_soon = self.server_state.leave_soon
        # asyncio's TLS transport, closed, cannot be asked for anything any more.
        if leave_soon is not None and not self.transport.is_closing():
            leave_soon(self)

    @property
    def is_movable(self) -> bool:
        """Whether nothing of a request has come and nothing of a response is left to be sent."""
        return not self.claimed and self.is_untouched

    @property
    def is_untouched(self) -> bool:
        """The same, where a thread may have claimed it."""
        transport = self.transport
        if self.moved or transport.is_closing():
            return False
        # A response may come before the request's body has.
        arriving = self.cycle is not None and self.cycle.more_body
        return self.idle and not arriving and not transport.get_write_buffer_size()

    def set_aside(self) -> None:
        """The app is about to have this thread, for an unknown time: wait where siblings can take it."""
        transport = self.transport
        if (
            self.stays
            or self.claimed
            or transport.is_closing()
            or transport.get_extra_info("sslcontext") is not None
        ):
            return
        if self.server_state.set_aside([self.sent]) is SENT:
            self.let_go()

    @property
    def sent(self) -> Sent:
        """What goes into an inbox for it."""
        kind = Kind.NEW if self.phase == WAITING else Kind.KEPT_ALIVE
        return Sent(kind, self.transport.get_extra_info("socket").fileno())

    def let_go(self) -> None:
        """It is another worker's now: close our descriptor alone, and hold nothing of it."""
        self.moved = True
        self.server_state.gate.leaves(self)
        self._end_timer()
        self.connections.discard(self)
        self.row[CONNECTIONS] = len(self.connections)
        self.finish()
        self.transport.abort()
        self.break_cycles()

    def break_cycles(self) -> None:
        """What uvicorn's ``connection_lost`` does, which is not called for a connection that has moved."""


class MovableHttpTools(MovableProtocol):
    scope: Any
    pipeline: Any
    parser: Any

    def break_cycles(self) -> None:
        self.parser = None  # it has our methods

    @property
    def is_awaited(self) -> bool:
        cycle = self.cycle
        if cycle is None or cycle.disconnected:
            return False
        # ``cycle`` belongs to the newest request: those before it may have no response yet.
        return not (cycle.more_body or cycle.response_complete) or bool(self.pipeline)

    @property
    def idle(self) -> bool:
        cycle = self.cycle
        if cycle is None:
            return self.scope is None
        return self.scope is cycle.scope and cycle.response_complete and not self.pipeline

    @property
    def ends_with_cycle(self) -> bool:
        # A request's scope is made at its first byte, its cycle after its head.
        return self.scope is (None if self.cycle is None else self.cycle.scope)


class MovableH11(MovableProtocol):
    conn: Any

    @property
    def idle(self) -> bool:
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.ends_with_cycle

    @property
    def ends_with_cycle(self) -> bool:
        return not self.conn.trailing_data[0]
