"""What the parts of the arbiter share: its log, its selector, the fleet, and what all workers inherit."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from multicore_server.arbiter.system import System
from multicore_server.connections.handover import Handover
from multicore_server.fleet.events import Observation
from multicore_server.fleet.fleet import Fleet
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import Scoreboard


@dataclass(frozen=True, slots=True)
class Lifeline:
    """A pipe that only the arbiter holds open for writing: whoever reads its end knows that it is gone."""

    reader: int
    writer: int


@dataclass(frozen=True, slots=True)
class ArbiterContext:
    """Made once, before the first fork. ``observe`` gives the fleet an observation; ``in_child`` is what a
    forked child closes first of all: the parts of the arbiter add theirs."""

    pid: int
    log: Any  # gunicorn's
    selector: selectors.BaseSelector
    fleet: Fleet
    scoreboard: Scoreboard
    handover: Handover
    requests: RequestTable
    cluster: ClusterState
    lifeline: Lifeline
    observe: Callable[[Observation], None]
    system: System = field(default_factory=System)
    in_child: list[Callable[[], None]] = field(default_factory=list)
    # The children that answer a `ForkedCall`: by pid, what is called when they have ended.
    helpers: dict[int, Callable[[], None]] = field(default_factory=dict)

    def leave_behind(self) -> None:
        """In a child: close what is the arbiter's alone."""
        self.system.close(self.lifeline.writer)
        for close in self.in_child:
            close()

    def listen_to(self, end: socket.socket | int, callback: Callable[[], None]) -> None:
        """Call it in the arbiter's loop whenever there is something to read."""
        self.selector.register(end, selectors.EVENT_READ, callback)

    def stop_listening_to(self, end: socket.socket | int) -> None:
        """Idempotent."""
        try:
            self.selector.unregister(end)
        except (KeyError, ValueError):  # it was done before; the end is closed
            return
