"""The other workers, as one worker sees them: who serves, who is least loaded, whose inbox nobody empties."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator

from multicore_server.connections.handover import Handover
from multicore_server.connections.placement import Candidate, Load, least_loaded
from multicore_server.ipc.heartbeat import BEAT, LATE, UNATTENDED
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Row

SAMPLE = 8  # candidates for one choice: it stays cheap with any number of workers
ON_DUTY = 2  # workers that look after the inboxes of all, while the others rest

# The values of Item.ACCEPTING.
CLOSED = 0.0  # it takes no more connections
BUSY = 0.5  # it takes none now, and will again
OPEN = 1.0

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
ACCEPTING = Item.ACCEPTING.value
BEAT_DUE = Item.BEAT_DUE.value


class Siblings:
    """Read from the scoreboard and the inboxes; ``slot`` and ``row`` are those of the worker that looks."""

    def __init__(self, handover: Handover, slot: int, row: Row) -> None:
        self._board = handover.scoreboard
        self._waiting = handover.inboxes.waiting
        self._slot = slot
        self._row = row
        self._serving: list[tuple[int, Row]] = []
        self._by_slot: dict[int, Row] = {}
        self._known = -1.0

    def serving(self) -> list[tuple[int, Row]]:
        """The other workers that serve, by slot and row; once this one has retired, its successor too."""
        board = self._board
        if self._known != board.changes:
            self._known = board.changes
            rows = ((number // ROWS_PER_SLOT, board.row(number)) for number in board.serving())
            retired = not self._row[Item.SERVING]
            self._serving = [(slot, row) for slot, row in rows if slot != self._slot or retired]
            self._by_slot = dict(self._serving)
        return self._serving

    @property
    def is_on_duty(self) -> bool:
        """Whether this worker is one of the first `ON_DUTY`."""
        return sum(slot < self._slot for slot, _ in self.serving()) < ON_DUTY

    def expect_beat(self, slot: int) -> None:
        """A connection was sent there: a worker that rests wakes, and one that does not is blocked."""
        row, due = self._by_slot.get(slot), time.monotonic() + BEAT
        if row is not None and row[BEAT_DUE] > due:
            row[BEAT_DUE] = due

    def exist(self) -> bool:
        """Whether a sibling takes connections, now or when it is no longer blocked or busy."""
        return any(row[Item.ACCEPTING] for _, row in self.serving())

    def least_loaded(self) -> int:
        """The slot that gets the next connection: its own on a tie, and where nobody can take it.

        As `placement.least_loaded` has it. It is asked under the lock, for each connection: so it makes no
        objects, and does not look into the inboxes of those that have more in progress already.
        """
        row, waiting, chosen = self._row, self._waiting, self._slot
        in_hand = connections = math.inf
        if row[ACCEPTING] == OPEN:
            lying = waiting(chosen)
            in_hand, connections = row[IN_HAND] + lying, row[CONNECTIONS] + lying
        overdue = time.monotonic() - LATE
        for slot, other in self._sample():
            theirs = other[IN_HAND]
            if theirs > in_hand or other[BEAT_DUE] <= overdue or other[ACCEPTING] != OPEN:
                continue
            lying = waiting(slot)
            theirs += lying
            if theirs < in_hand or (theirs == in_hand and other[CONNECTIONS] + lying < connections):
                chosen, in_hand, connections = slot, theirs, other[CONNECTIONS] + lying
        return chosen

    def least_in_hand(self) -> float:
        """Of the siblings, or of some of them; infinite where there is none."""
        return min((row[IN_HAND] for _, row in self._sample()), default=math.inf)

    def best(self, *, fresh: bool = False) -> int | None:
        """The least loaded sibling. Where all seem blocked, one of them: others can take from its inbox; with
        ``fresh``, none."""
        candidates = [candidate for candidate in self._candidates() if candidate.accepting]
        found = least_loaded(None, candidates, time.monotonic())
        return least_loaded(None, candidates, 0.0) if found is None and not fresh else found

    def fewest(self) -> tuple[int, float]:
        """The sibling with the fewest connections: its slot and their number, infinite if there is none."""
        now = time.monotonic()
        fresh = ((it.load.connections, it.slot) for it in self._candidates() if it.can_take(now))
        connections, slot = min(fresh, default=(math.inf, self._slot))
        return slot, connections

    def unattended(self, most: int | None = None) -> list[int]:
        """The slots whose inboxes nobody looks after: their workers are gone, retired, stopped or blocked.

        With ``most``, so many slots are looked at, those behind this one's: where all do that, each slot is
        looked at by others.
        """
        self.serving()
        used, own = self._board.used_slots, self._slot
        others = used - 1 if most is None else min(most, used - 1)
        slots = [(own + step) % used for step in range(1, others + 1)]
        overdue = time.monotonic() - UNATTENDED
        return [slot for slot in slots if not self._is_attended(slot, overdue)]

    def _is_attended(self, slot: int, overdue: float) -> bool:
        row = self._by_slot.get(slot)
        return row is not None and row[BEAT_DUE] > overdue and row[ACCEPTING] == OPEN

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
            yield Candidate(slot, load, row[Item.ACCEPTING] == OPEN, row[BEAT_DUE])
