"""The other workers, as one of them sees them: who serves, who is least loaded, who looks after its inbox."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator

from multicore_server.connections.handover import Handover
from multicore_server.connections.placement import Candidate, Load, least_loaded
from multicore_server.ipc.heartbeat import STALE, UNATTENDED
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Row

SAMPLE = 8  # candidates for one choice: it stays cheap with any number of workers

# The values of Item.ACCEPTING.
CLOSED = 0.0  # it takes no more connections
BUSY = 0.5  # it takes none now, and will again
OPEN = 1.0

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
ACCEPTING = Item.ACCEPTING.value
HEARTBEAT = Item.HEARTBEAT.value


class Siblings:
    """Read from the scoreboard and the inboxes; ``slot`` and ``row`` are those of the worker that looks."""

    def __init__(self, handover: Handover, slot: int, row: Row) -> None:
        self._board = handover.scoreboard
        self._waiting = handover.inboxes.waiting
        self._slot = slot
        self._row = row
        self._serving: list[tuple[int, Row]] = []
        self._known = -1.0

    def serving(self) -> list[tuple[int, Row]]:
        """The other workers that serve, by slot and row; once this one has retired, its successor too."""
        board = self._board
        if self._known != board.changes:
            self._known = board.changes
            rows = ((number // ROWS_PER_SLOT, board.row(number)) for number in board.serving())
            retired = not self._row[Item.SERVING]
            self._serving = [(slot, row) for slot, row in rows if slot != self._slot or retired]
        return self._serving

    def exist(self) -> bool:
        """Whether a sibling takes connections, now or when it is no longer blocked or busy."""
        return any(row[Item.ACCEPTING] for _, row in self.serving())

    def none_serve(self) -> bool:
        """Whether no other worker serves, for sure: one that has just begun may not know yet."""
        return bool(self._row[Item.SERVING]) and not self.serving()

    def least_loaded(self) -> int:
        """The slot that gets the next connection: its own on a tie, and where nobody can take it.

        As `placement.least_loaded` has it. It is asked under the lock, for each connection: so it makes no
        objects, and does not look into the inboxes of those that have more in hand already.
        """
        row, waiting, chosen = self._row, self._waiting, self._slot
        in_hand = connections = math.inf
        if row[ACCEPTING] == OPEN:
            lying = waiting(chosen)
            in_hand, connections = row[IN_HAND] + lying, row[CONNECTIONS] + lying
        stale = time.monotonic() - STALE
        for slot, other in self._sample():
            theirs = other[IN_HAND]
            if theirs > in_hand or other[HEARTBEAT] <= stale or other[ACCEPTING] != OPEN:
                continue
            lying = waiting(slot)
            theirs += lying
            if theirs < in_hand or (theirs == in_hand and other[CONNECTIONS] + lying < connections):
                chosen, in_hand, connections = slot, theirs, other[CONNECTIONS] + lying
        return chosen

    def least_in_hand(self) -> float:
        """Of the siblings, or of some of them; infinite where there is none."""
        return min((row[IN_HAND] for _, row in self._sample()), default=math.inf)

    def best(self) -> int | None:
        """The least loaded sibling. Where all seem blocked, one of them: others can take from its inbox."""
        candidates = [candidate for candidate in self._candidates() if candidate.accepting]
        fresh = least_loaded(None, candidates, time.monotonic())
        return least_loaded(None, candidates, 0.0) if fresh is None else fresh

    def fewest(self) -> tuple[int, float]:
        """The sibling with the fewest connections: its slot and their number, infinite if there is none."""
        now = time.monotonic()
        fresh = ((it.load.connections, it.slot) for it in self._candidates() if it.can_take(now))
        connections, slot = min(fresh, default=(math.inf, self._slot))
        return slot, connections

    def unattended(self) -> list[int]:
        """The slots whose inboxes nobody looks after: their workers are gone, retired, stopped or blocked."""
        now = time.monotonic()
        attended = {self._slot}
        for slot, row in self.serving():
            if row[Item.ACCEPTING] == OPEN and now - row[Item.HEARTBEAT] < UNATTENDED:
                attended.add(slot)
        return [slot for slot in range(self._board.used_slots) if slot not in attended]

    def _sample(self) -> list[tuple[int, Row]]:
        """Neighbours in the list, from a place that is drawn: cheaper than to draw each."""
        siblings = self.serving()
        if len(siblings) <= SAMPLE:
            return siblings
        start = int(random.random() * len(siblings))  # noqa: S311 - no secret
        return (siblings[start:] + siblings)[:SAMPLE]

    def _candidates(self) -> Iterator[Candidate]:
        for slot, row in self._sample():
            waiting = self._waiting(slot)
            load = Load(row[IN_HAND] + waiting, row[CONNECTIONS] + waiting)
            yield Candidate(slot, load, row[Item.ACCEPTING] == OPEN, row[Item.HEARTBEAT])
