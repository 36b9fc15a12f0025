"""Decides which worker gets a connection: the least loaded one that can take it, on a tie the one that asks.

Pure: the standard library alone. The load is the number of requests in progress (a connection that waits for
its first request counts as one), then the number of open connections. A connection in an inbox counts as
both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from multicore_server.ipc.heartbeat import LATE


class Load(NamedTuple):
    """Compared item by item: what is in progress decides, connections where that is equal."""

    in_hand: float
    connections: float


class Candidate(NamedTuple):
    """A worker as the scoreboard and its inbox show it."""

    slot: int
    load: Load
    accepting: bool
    beat_due: float  # seconds of CLOCK_MONOTONIC

    def can_take(self, now: float) -> bool:
        return self.accepting and now - self.beat_due < LATE


def least_loaded(own: Candidate | None, others: Iterable[Candidate], now: float) -> int | None:
    """The slot that gets the next connection; None if nobody can take it.

    ``own`` is who asks, None if it takes no more connections itself. It need not be fresh: it is running.
    """
    best = own
    for candidate in others:
        if candidate.can_take(now) and (best is None or candidate.load < best.load):
            best = candidate
    return None if best is None else best.slot
