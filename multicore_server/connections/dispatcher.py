"""Places the connections that arrive at a worker, takes what is in inboxes, hands over what it leaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from enum import Enum

from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.connections.siblings import Siblings
from multicore_server.ipc.scoreboard import Item, Row

CLOSE_PATIENCE = 0.1  # seconds for the lock, where nothing waits behind it
WORTHWHILE = 0.001  # seconds: a wait below this does not pay for a hand-over
QUIET = 10.0  # seconds between two log lines about the same trouble

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
UNREAD = Item.UNREAD.value
HANDED_OVER = Item.HANDED_OVER.value
MIGRATED = Item.MIGRATED.value

logger = logging.getLogger("gunicorn.error")


class Outcome(Enum):
    """What became of a connection."""

    KEPT = "kept"  # it stays with this worker
    SENT = "sent"  # its descriptor lies in an inbox: this worker closes its own


KEPT, SENT = Outcome.KEPT, Outcome.SENT


class Dispatcher:
    """Belongs to the worker that has ``slot`` and ``row``.

    ``inline``: the worker does one thing at a time. What stays with it while something is in hand waits in
    its inbox, where siblings can take it: what is in hand may take long.

    What `take`, `empty`, `sweep` and `place_inbox_anew` return is counted as this worker's, which adopts it.
    """

    def __init__(self, handover: Handover, slot: int, row: Row, *, inline: bool = False) -> None:
        self.siblings = Siblings(handover, slot, row)
        self.surplus = 0  # connections that a sibling should have
        self._handover = handover
        self._inboxes = handover.inboxes
        self._slot = slot
        self.row = row
        self._inline = inline
        self._complained = 0.0
        self._open = False
        self._slack = 0.0  # connections that it answers within WORTHWHILE
        self._answered = 0
        self._beat_at = time.monotonic()

    def open(self) -> None:
        """Siblings may send connections from now on."""
        self._open = True
        self.row[Item.ACCEPTING] = 1

    def close(self) -> None:
        """Take no more connections. Under the lock: what was sent here before can be found in the inbox."""
        self._open = False
        deadline = time.monotonic() + CLOSE_PATIENCE
        closed = False
        while not closed and time.monotonic() < deadline:
            with self._handover.locked() as closed:
                self.row[Item.ACCEPTING] = 0

    def beat(self, connections: int, answered: int, *, free: bool = True) -> None:
        """At each heartbeat: how many connections are open, and how many requests have been answered.

        Not ``free``: nothing else is answered before what is in hand. If that was so for a whole beat while
        the loop ran, a client is slow, and others are not to wait for it: siblings take what comes.
        """
        self.row[CONNECTIONS] = connections
        if self._open:
            self.row[Item.ACCEPTING] = free or answered != self._answered
        now = time.monotonic()
        rate = (answered - self._answered) / (now - self._beat_at)
        self._answered, self._beat_at = answered, now
        self._slack = rate * WORTHWHILE

    # --- placing ---

    def is_quick(self, connections: float) -> bool:
        """Whether so many connections are answered here within `WORTHWHILE`."""
        return connections <= self._slack

    def dispatch(self, kind: Kind, descriptor: int) -> Outcome:
        """Place a connection: it is kept, and counted, or a sibling has it.

        A worker that answers thousands of requests a second is through with a few connections more before
        a sibling could have taken them; one whose requests take long has no such slack. Whatever goes wrong
        on the way to a sibling, the connection is kept.
        """
        if kind is Kind.NEW and self.row[IN_HAND] + 1 <= self._slack:
            self._count(kind)
            return KEPT
        return self._place(kind, descriptor)

    def _place(self, kind: Kind, descriptor: int) -> Outcome:
        if not self.siblings.serving():
            self._count(kind)
            return KEPT
        with self._handover.locked() as locked:
            target = self.siblings.least_loaded() if locked else self._slot
            waits = self._inline and self.row[IN_HAND] > 0
            if (target == self._slot and not waits) or self._send(target, kind, descriptor) is KEPT:
                self._count(kind)
                return KEPT
            self.row[HANDED_OVER] += target != self._slot
            return SENT

    def hand_over(self, kind: Kind, descriptor: int) -> Outcome:
        """Give a connection to a sibling; it is kept if there is none, or no way."""
        if not self.siblings.serving():
            return KEPT
        with self._handover.locked() as locked:
            target = self.siblings.best() if locked else None
            return KEPT if target is None else self._migrate(target, kind, descriptor)

    def rebalance(self, kind: Kind, descriptor: int) -> Outcome:
        """Give a connection to the sibling that has the fewest, if that makes the two more even."""
        self.surplus -= 1
        with self._handover.locked() as locked:
            target, connections = self.siblings.fewest()
            if not locked or self.row[CONNECTIONS] - connections <= 1:
                return KEPT
            return self._migrate(target, kind, descriptor)

    def set_aside(self, kind: Kind, descriptor: int) -> Outcome:
        """Put a connection that would wait here into an inbox: the least loaded worker's, or its own."""
        if not self.siblings.serving():
            return KEPT
        with self._handover.locked() as locked:
            target = self.siblings.least_loaded() if locked else self._slot
            outcome = self._send(target, kind, descriptor)
            self.row[HANDED_OVER] += outcome is SENT and target != self._slot
            return outcome

    def measure_surplus(self) -> None:
        """Note how many connections a sibling should have. Clients keep their connections for long: only so
        does a worker that is new, or one that was blocked when they came, get its part of them."""
        own = self.row[CONNECTIONS]
        fewest = self.siblings.fewest()[1] if own > 1 else own
        self.surplus = int(max(0.0, own - fewest) / 2)

    def _migrate(self, target: int, kind: Kind, descriptor: int) -> Outcome:
        outcome = self._send(target, kind, descriptor)
        self.row[MIGRATED] += outcome is SENT
        return outcome

    def _send(self, target: int, kind: Kind, descriptor: int) -> Outcome:
        try:
            self._inboxes.send(target, kind, descriptor)
        except OSError as exc:  # the inbox is full, or too many descriptors are on their way
            self.complain(f"a connection could not be handed to instance={target} (%s) and stays here", exc)
            return KEPT
        return SENT

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
        """The descriptor that is readable when something lies in this slot's inbox."""
        return self._inboxes.reader(self._slot).fileno()

    @property
    def waiting(self) -> int:
        """How many connections lie in this slot's inbox."""
        return self._inboxes.waiting(self._slot)

    def take(self) -> Handed | None:
        """Take one connection from this slot's inbox."""
        handed = self._receive(self._slot)
        if handed is not None:
            self._count(handed.kind)
        return handed

    def empty(self) -> list[Handed]:
        """Hand over what is in this slot's inbox, from a worker that retires; what nobody takes is kept."""
        kept = []
        for handed in self._received(self._slot):
            if self.hand_over(handed.kind, handed.connection.fileno()) is SENT:
                handed.connection.close()
            else:
                self._count(handed.kind)
                kept.append(handed)
        return kept

    def place_inbox_anew(self) -> list[Handed]:
        """Place anew what lies in this slot's own inbox."""
        return self._place_anew(self._slot)

    def sweep(self) -> list[Handed]:
        """Place anew what lies in the inboxes that nobody looks after."""
        slots = [slot for slot in self.siblings.unattended() if self._inboxes.waiting(slot)]
        return [handed for slot in slots for handed in self._place_anew(slot)]

    def _place_anew(self, slot: int) -> list[Handed]:
        kept = []
        for handed in self._received(slot):
            if self._place(handed.kind, handed.connection.fileno()) is KEPT:
                kept.append(handed)
            else:
                handed.connection.close()
        return kept

    def _received(self, slot: int) -> Iterator[Handed]:
        """What is in an inbox now: some of it may be sent there again."""
        for _ in range(self._inboxes.waiting(slot)):
            handed = self._receive(slot)
            if handed is None:
                return
            yield handed

    def _receive(self, slot: int) -> Handed | None:
        try:
            return self._inboxes.receive(slot)
        except OSError as exc:  # no descriptors left
            self.complain("a connection could not be taken (%s) and waits on", exc)
            return None
