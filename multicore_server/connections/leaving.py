"""Sends a worker's idle connections away: several at once, in one message to one sibling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multicore_server.connections.dispatcher import SENT, Outcome
from multicore_server.connections.inboxes import BATCH
from multicore_server.connections.protocol import MovableProtocol
from multicore_server.connections.state import ConnectionsState


class Leaving:
    """Connections that leave after their responses.

    They are not read from until the loop's next turn, in which they are sent together: so none is answered
    once more and none has to wait.
    """

    def __init__(self, state: ConnectionsState, loop: Any) -> None:
        self._state = state
        self._loop = loop
        self._paused: list[MovableProtocol] = []

    def soon(self, connection: MovableProtocol) -> None:
        """Send it to a sibling before its next request is read."""
        if not connection.can_leave or connection.transport.is_closing():
            return
        connection.transport.pause_reading()
        connection.settled_at = self._state.beats + 2
        self._send_soon(connection)

    def _send_soon(self, connection: MovableProtocol) -> None:
        if not self._paused:
            self._loop.call_soon(self._send)
        self._paused.append(connection)

    def _send(self) -> None:
        paused, self._paused = self._paused, []
        for start in range(0, len(paused), BATCH):
            send_idle(paused[start : start + BATCH], self._state)
        for connection in paused:
            if connection.moved or connection.transport.is_closing():
                continue
            if connection.claimed:  # a thread has it at this moment, and sends it or leaves it
                self._send_soon(connection)
            else:
                connection.transport.resume_reading()


def send_idle(connections: Sequence[MovableProtocol], state: ConnectionsState) -> bool:
    """Send those that are idle to a sibling, all of them to one; False if nobody takes them now."""
    idle = [connection for connection in connections if connection.is_movable]
    return not idle or send(idle, state.hand_over) is SENT


def send(connections: Sequence[MovableProtocol], hand_over: Any) -> Outcome:
    outcome: Outcome = hand_over([connection.sent for connection in connections])
    if outcome is SENT:
        for connection in connections:
            connection.let_go()
    return outcome
