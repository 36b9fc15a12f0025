"""Connections with fake transports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multicore_server.connections.dispatcher import SENT, Outcome
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.leaving import Leaving, send_idle
from tests.unit.fake_transport import Connections

Build = Callable[..., Connections]


class Siblings:
    """Where connections are handed to; ``outcome`` is what becomes of them."""

    def __init__(self, outcome: Outcome = SENT) -> None:
        self.outcome = outcome
        self.handed: list[tuple[Kind, int]] = []

    def place(self, connections: Sequence[Sent]) -> Outcome:
        self.handed += connections
        return self.outcome

    def dispatch(self, kind: Kind, descriptor: int) -> Outcome:
        return self.place([Sent(kind, descriptor)])


def sharing(server: Connections, outcome: Outcome = SENT) -> Siblings:
    siblings = Siblings(outcome)
    server.state.hand_over = server.state.set_aside = siblings.place
    server.state.sheds = lambda: True
    server.state.leave_soon = Leaving(server.state, server.loop).soon
    return siblings


def leave(connection: Any) -> bool:
    """Whether it has left."""
    send_idle([connection], connection.server_state)
    return bool(connection.moved and connection.transport.aborted)


def draining(server: Connections, *, moving: bool = False) -> None:
    server.state.draining = True
    server.state.moving = moving
    server.state.sheds = lambda: server.state.moving
    server.state.tell = lambda connection: connection.end()
