"""Places the connections that arrive at a worker, takes those in inboxes, hands over those that leave."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Handed, Kind, Sent
from multicore_server.connections.siblings import BUSY, CLOSED, OPEN, SAMPLE, Siblings
from multicore_server.ipc.scoreboard import Item, Row

CLOSE_PATIENCE = 0.1  # seconds for the lock, where nothing waits behind it
WORTHWHILE = 0.002  # seconds: a wait below this does not pay for a hand-over
# A hand-over takes some 40 us of CPU time. Where requests take less than `SHORT`, that is so large a part of
# what they take that a longer wait is accepted, up to `LONGER` times `WORTHWHILE`.
SHORT = 0.0005  # seconds
LONGER = 5.0
QUIET = 10.0  # seconds between two log lines about the same trouble
SWEEP = 64  # connections of one inbox that are placed anew before others get a turn
# Connections in the inbox of a sibling above which it gets no idle ones: here they are served meanwhile, so
# the sibling's pace decides. It is what a sibling takes within some 25 ms.
ENOUGH = 256

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
UNREAD = Item.UNREAD.value
HANDED_OVER = Item.HANDED_OVER.value
MIGRATED = Item.MIGRATED.value

logger = logging.getLogger("gunicorn.error")


class Outcome(Enum):
    """What became of a connection."""

    KEPT = "kept"  # it stays with this worker
    SENT = "sent"  # its descriptor is in an inbox: this worker closes its own


KEPT, SENT = Outcome.KEPT, Outcome.SENT


class Swept(NamedTuple):
    """What became of connections that lay in inboxes."""

    kept: list[Handed]  # they are counted here, and to be adopted
    placed: int  # all that were taken out


class Dispatcher:
    """Belongs to the worker that has ``slot`` and ``row``.

    ``inline``: the worker does one thing at a time. What stays with it while something is in progress waits
    in its inbox, where siblings can take it: what is in progress may take long.

    The connections that `take`, `empty`, `sweep` and `place_inbox_anew` return are counted as this worker's,
    which adopts them.
    """

    def __init__(self, handover: Handover, slot: int, row: Row, *, inline: bool = False) -> None:
        self.siblings = Siblings(handover, slot, row)
        self.surplus = 0  # connections that a sibling should have
        self.wake: Callable[[], None] | None = None  # while it rests, called when connections come or go
        self._locked = handover.lock_of()
        self._inboxes = handover.inboxes
        self.slot = slot
        self.row = row
        self._inline = inline
        self._complained = 0.0
        self._open = False
        self._slack = 0.0  # connections more than a sibling has that are answered here soon enough
        self._answered = 0
        self._beat_at = time.monotonic()

    def open(self) -> None:
        """Siblings may send connections from now on."""
        self._open = True
        self.row[Item.ACCEPTING] = OPEN

    def close(self) -> None:
        """Take no more connections. Under the lock: what was sent here before can be found in the inbox."""
        self._open = False
        deadline = time.monotonic() + CLOSE_PATIENCE
        closed = False
        while not closed and time.monotonic() < deadline:
            with self._locked as closed:
                self.row[Item.ACCEPTING] = CLOSED

    def beat(self, connections: int, answered: int, *, free: bool = True) -> None:
        """At each heartbeat: how many connections are open, and how many requests have been answered.

        Not ``free``: nothing else is answered before what is in progress. If that was so for a whole beat
        while the loop ran, a client is slow, and others are not to wait for it: siblings take what comes.
        """
        self.row[CONNECTIONS] = connections
        if self._open:
            self.row[Item.ACCEPTING] = OPEN if free or answered != self._answered else BUSY
        now = time.monotonic()
        rate = (answered - self._answered) / (now - self._beat_at)
        self._answered, self._beat_at = answered, now
        longer = 1.0 if self._inline else min(1 + rate * SHORT, LONGER)
        self._slack = rate * WORTHWHILE * longer

    # --- placing ---

    def is_quick(self, connections: float) -> bool:
        """Whether an inline worker answers so many connections within `WORTHWHILE`."""
        return connections <= self._slack

    def dispatch(self, kind: Kind, descriptor: int) -> Outcome:
        """Place a connection: it is kept, and counted, or a sibling has it.

        Whatever goes wrong on the way to a sibling, the connection is kept.
        """
        return KEPT if kind is Kind.NEW and self.take_new() else self.place(kind, descriptor)

    def take_new(self) -> bool:
        """Take a new connection, and count it, where it is answered here sooner than a sibling could take it.

        A worker that answers thousands of requests a second is through with a few connections more than its
        siblings have before one of them could have taken them; one whose requests take long has no such
        slack.
        """
        slack, row = self._slack, self.row
        in_hand = row[IN_HAND] + 1
        if in_hand > slack and (slack < 1 or self._inline or in_hand - self.siblings.least_in_hand() > slack):
            return False
        row[IN_HAND] = in_hand
        row[CONNECTIONS] += 1
        row[UNREAD] += 1
        return True

    def place(self, kind: Kind, descriptor: int) -> Outcome:
        """As `dispatch`, where `take_new` has not taken it."""
        return self._place([Sent(kind, descriptor)])

    def _place(self, connections: Sequence[Sent]) -> Outcome:
        """Place connections together."""
        if not self.siblings.serving():
            return self._keep(connections)
        with self._locked as locked:
            target = self.siblings.least_loaded() if locked else self.slot
            waits = self._inline and self.row[IN_HAND] > 0 and connections[0].kind is Kind.NEW
            if (target == self.slot and not waits) or self._send(target, connections) is KEPT:
                return self._keep(connections)
            self.row[HANDED_OVER] += len(connections) if target != self.slot else 0
            return SENT

    def _keep(self, connections: Sequence[Sent] | Sequence[Handed]) -> Outcome:
        for connection in connections:
            self._count(connection.kind)
        return KEPT

    def hand_over(self, connections: Sequence[Sent], enough: float = ENOUGH) -> Outcome:
        """Give idle connections to a sibling, all of them to one; they are kept if there is none, or no way,
        or if ``enough`` wait for it already."""
        if not self.siblings.serving():
            return KEPT
        with self._locked as locked:
            target = self.siblings.best() if locked else None
            if target is None or self._inboxes.waiting(target) >= enough:
                return KEPT
            return self._migrate(target, connections)

    def give(self, connections: Sequence[Sent]) -> Outcome:
        """Give idle connections to the least loaded sibling that is not blocked itself; nothing is counted.

        For a thread beside the loop's, with a dispatcher of its own.
        """
        with self._locked as locked:
            target = self.siblings.best(fresh=True) if locked else None
            if target is None or self._inboxes.waiting(target) >= ENOUGH:
                return KEPT
            return self._send(target, connections)

    def rebalance(self, connections: Sequence[Sent]) -> Outcome:
        """Give connections to the sibling that has the fewest, if that makes the two more even."""
        self.surplus -= len(connections)
        with self._locked as locked:
            target, fewest = self.siblings.fewest()
            if not locked or self.row[CONNECTIONS] - fewest < 2 * len(connections):
                return KEPT
            return self._migrate(target, connections)

    def set_aside(self, connections: Sequence[Sent]) -> Outcome:
        """Put connections that would wait here into an inbox: the least loaded worker's, or its own."""
        if not self.siblings.serving():
            return KEPT
        with self._locked as locked:
            target = self.siblings.least_loaded() if locked else self.slot
            outcome = self._send(target, connections)
            self.row[HANDED_OVER] += len(connections) if outcome is SENT and target != self.slot else 0
            return outcome

    def measure_surplus(self) -> None:
        """Note how many connections a sibling should have. Clients keep their connections for long: only so
        does a worker that is new, or one that was blocked when they came, get its part of them."""
        own = self.row[CONNECTIONS]
        fewest = self.siblings.fewest()[1] if own > 1 else own
        self.surplus = int(max(0.0, own - fewest) / 2)

    def _migrate(self, target: int, connections: Sequence[Sent]) -> Outcome:
        outcome = self._send(target, connections)
        self.row[MIGRATED] += len(connections) if outcome is SENT else 0
        return outcome

    def _send(self, target: int, connections: Sequence[Sent]) -> Outcome:
        try:
            self._inboxes.send(target, connections)
        except OSError as exc:  # the inbox is full, or too many descriptors are on their way
            self.complain(f"a connection could not be handed to instance={target} (%s) and stays here", exc)
            return KEPT
        self.siblings.expect_beat(target)
        self._wake()
        return SENT

    def _wake(self) -> None:
        if self.wake is not None:
            self.wake()

    def _count(self, kind: Kind) -> None:
        """At once, for the next choice, which may be made before the connection is set up."""
        row = self.row
        row[CONNECTIONS] += 1
        if kind is Kind.NEW:
            row[IN_HAND] += 1
            row[UNREAD] += 1

    def complain(self, text: str, exc: OSError) -> None:
        """Log it, if that was not done a short while ago."""
        now = time.monotonic()
        if now - self._complained > QUIET:
            self._complained = now
            logger.warning(text, exc)

    # --- inboxes ---

    @property
    def inbox(self) -> int:
        """The descriptor that is readable when something is in this slot's inbox."""
        return self._inboxes.reader(self.slot).fileno()

    @property
    def waiting(self) -> int:
        """How many connections are in this slot's inbox."""
        return self._inboxes.waiting(self.slot)

    def take(self) -> list[Handed]:
        """Take the connections of one message from this slot's inbox. None though some are `waiting`: there
        are no descriptors left for them."""
        self._wake()
        taken = self._receive(self.slot)
        self._keep(taken)
        return taken

    def empty(self) -> list[Handed]:
        """Hand over what is in this slot's inbox, from a worker that retires; what nobody takes is kept."""
        kept = []
        for message in self._received(self.slot):
            if self.hand_over(_sent(message), math.inf) is SENT:
                _close(message)
            else:
                self._keep(message)
                kept += message
        return kept

    def place_inbox_anew(self) -> Swept:
        """Place anew what is in this slot's own inbox, some of it."""
        return self._place_anew([self.slot])

    def sweep(self) -> Swept:
        """Place anew what is in the inboxes that nobody looks after, some of it."""
        rests = self.wake is not None and not self.siblings.is_on_duty
        looked_at = self.siblings.unattended(SAMPLE if rests else None)
        return self._place_anew([slot for slot in looked_at if self._inboxes.waiting(slot)])

    def _place_anew(self, slots: Sequence[int]) -> Swept:
        kept: list[Handed] = []
        placed = 0
        for slot in slots:
            for message in self._received(slot, SWEEP):
                placed += len(message)
                if self._place(_sent(message)) is KEPT:
                    kept += message
                else:
                    _close(message)
        return Swept(kept, placed)

    def _received(self, slot: int, most: float = math.inf) -> Iterator[list[Handed]]:
        """The messages that are in an inbox now, up to so many connections: some may be sent there again."""
        left = min(self._inboxes.waiting(slot), most)
        while left > 0 and (message := self._receive(slot)):
            left -= len(message)
            yield message

    def _receive(self, slot: int) -> list[Handed]:
        try:
            return self._inboxes.receive(slot)
        except OSError as exc:  # no descriptors left
            self.complain("a connection could not be taken (%s) and keeps waiting", exc)
            return []


def _sent(message: Sequence[Handed]) -> list[Sent]:
    return [Sent(handed.kind, handed.connection.fileno()) for handed in message]


def _close(message: Sequence[Handed]) -> None:
    for handed in message:
        handed.connection.close()
