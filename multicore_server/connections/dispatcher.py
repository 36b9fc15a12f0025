"""Places the connections that arrive at a worker, takes what is in inboxes, hands over what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from multicore_server.connections.inboxes import Handed, Inboxes, Kind
from multicore_server.connections.placement import Candidate, Load, least_loaded
from multicore_server.ipc.heartbeat import UNATTENDED
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Row, Scoreboard

LOCK_PATIENCE = 0.001  # seconds: whoever holds the lock may have been stopped
CLOSE_PATIENCE = 0.1  # the same, where nothing waits behind it
WORTHWHILE = 0.001  # seconds: a wait below this does not pay for a hand-over
SAMPLE = 8  # candidates looked at for one choice: it stays cheap with any number of workers
QUIET = 10.0  # seconds between two log lines about the same trouble

IN_HAND = Item.IN_HAND.value
CONNECTIONS = Item.CONNECTIONS.value
UNREAD = Item.UNREAD.value
HANDED_OVER = Item.HANDED_OVER.value
MIGRATED = Item.MIGRATED.value

logger = logging.getLogger("gunicorn.error")


class Handover(NamedTuple):
    """What all workers share, made once before the first fork."""

    scoreboard: Scoreboard
    inboxes: Inboxes
    lock: int  # a memfd to lock

    @classmethod
    def make(cls, scoreboard: Scoreboard, slots: int) -> Handover:
        return cls(scoreboard, Inboxes(slots), os.memfd_create("placement"))


class Dispatcher:
    """``adopt`` makes a connection that was in an inbox this worker's own.

    ``inline``: the worker does one thing at a time. What stays with it while something is in hand waits in
    its inbox, where siblings can take it: what is in hand may take long.
    """

    def __init__(
        self,
        handover: Handover,
        slot: int,
        row: Row,
        adopt: Callable[[Handed], None],
        *,
        inline: bool = False,
    ) -> None:
        self.handover = handover
        self.slot = slot
        self.row = row
        self._adopt = adopt
        self._inline = inline
        self._siblings: list[tuple[int, Row]] = []
        self._known = -1.0
        self._complained = 0.0
        self._open = False
        self._slack = 0.0  # connections that it answers within WORTHWHILE
        self._answered = 0
        self._beat_at = time.monotonic()

    def open(self) -> None:
        self._open = True
        self.row[Item.ACCEPTING] = 1

    def close(self) -> None:
        """Take no more connections. Under the lock: what was sent here before can be found in the inbox."""
        self._open = False
        deadline = time.monotonic() + CLOSE_PATIENCE
        closed = False
        while not closed and time.monotonic() < deadline:
            with self._locked() as closed:
                self.row[Item.ACCEPTING] = 0

    def beat(self, connections: int, answered: int, awaited: bool = False) -> None:
        """At each heartbeat: how many connections are open, and how many requests have been answered.

        ``awaited``: nothing else is answered before what is in hand. If that was so for a whole beat while
        the loop ran, a client is slow, and others are not to wait for it: siblings take what comes.
        """
        self.row[CONNECTIONS] = connections
        if self._open:
            self.row[Item.ACCEPTING] = not awaited or answered != self._answered
        now = time.monotonic()
        rate = (answered - self._answered) / (now - self._beat_at)
        self._answered, self._beat_at = answered, now
        self._slack = rate * WORTHWHILE

    # --- placing ---

    def has_time(self) -> bool:
        """Whether a new connection is answered here sooner than handing it over would take; if so, count it.

        A worker that answers thousands of requests a second is through with a few connections more before
        a sibling could have taken them; one whose requests take long has no such slack.
        """
        row = self.row
        if not self.is_quick(row[IN_HAND] + 1):
            return False
        self._count(Kind.NEW)
        return True

    def is_quick(self, connections: float) -> bool:
        """Whether so many connections are answered here within `WORTHWHILE`."""
        return connections <= self._slack

    def keeps(self, kind: Kind, descriptor: int) -> bool:
        """Place a connection: True if it stays here, and is counted; False if a sibling has it.

        Whatever goes wrong on the way to a sibling, it stays here.
        """
        if not self._around():
            self._count(kind)
            return True
        with self._locked() as locked:
            target = self._least_loaded() if locked else self.slot
            waits = self._inline and self.row[IN_HAND] > 0
            if (target == self.slot and not waits) or not self._send(target, kind, descriptor):
                self._count(kind)
                return True
            self.row[HANDED_OVER] += target != self.slot
            return False

    def passes_on(self, kind: Kind, descriptor: int) -> bool:
        """Give a connection to a sibling, without a place for it here. False: there is none, or no way."""
        if not self._around():
            return False
        with self._locked() as locked:
            target = self._best_sibling() if locked else None
            return target is not None and self._migrate(target, kind, descriptor)

    def sets_aside(self, kind: Kind, descriptor: int) -> bool:
        """Put a connection of this worker into an inbox: the least loaded one's, or its own."""
        if not self._around():
            return False
        with self._locked() as locked:
            target = self._least_loaded() if locked else self.slot
            sent = self._send(target, kind, descriptor)
            self.row[HANDED_OVER] += sent and target != self.slot
            return sent

    @property
    def alone(self) -> bool:
        """Whether no other worker serves, for sure: one that has just begun may not know yet."""
        return bool(self.row[Item.SERVING]) and not self._around()

    # --- sharing ---

    def surplus(self) -> int:
        """How many of its connections a sibling should have. Clients keep their connections for long: only
        so does a worker that is new, or one that was blocked when they came, get its part of them."""
        own = self.row[CONNECTIONS]
        if own < 2:
            return 0
        fewest = min((load.connections for _, load in self._fresh()), default=math.inf)
        return int(max(0.0, own - fewest) / 2)

    def shares(self, kind: Kind, descriptor: int) -> bool:
        """Give a connection to the sibling that has the fewest, if that makes the two more even."""
        with self._locked() as locked:
            if not locked:
                return False
            target, load = min(self._fresh(), key=lambda one: one[1].connections, default=(0, None))
            uneven = load is not None and self.row[CONNECTIONS] - load.connections > 1
            return uneven and self._migrate(target, kind, descriptor)

    def _migrate(self, target: int, kind: Kind, descriptor: int) -> bool:
        sent = self._send(target, kind, descriptor)
        self.row[MIGRATED] += sent
        return sent

    def _fresh(self) -> Iterator[tuple[int, Load]]:
        now = time.monotonic()
        return ((other.slot, other.load) for other in self._candidates() if other.can_take(now))

    def has_sibling(self) -> bool:
        """Whether another worker takes connections, now or when it is no longer blocked."""
        return any(row[Item.ACCEPTING] for _, row in self._around())

    def _best_sibling(self) -> int | None:
        """The least loaded. Where all seem blocked, one of them: siblings and successors see its inbox."""
        candidates = [candidate for candidate in self._candidates() if candidate.accepting]
        fresh = least_loaded(None, candidates, time.monotonic())
        return least_loaded(None, candidates, 0.0) if fresh is None else fresh

    def _count(self, kind: Kind) -> None:
        """At once, for the next choice, which may be made before the connection is set up."""
        self.row[CONNECTIONS] += 1
        if kind is Kind.NEW:
            self.row[IN_HAND] += 1
            self.row[UNREAD] += 1

    def _least_loaded(self) -> int:
        row, waiting = self.row, self.handover.inboxes.waiting(self.slot)
        load = Load(row[IN_HAND] + waiting, row[CONNECTIONS] + waiting)
        own = Candidate(self.slot, load, True, 0.0) if row[Item.ACCEPTING] else None
        chosen = least_loaded(own, self._candidates(), time.monotonic())
        return self.slot if chosen is None else chosen

    def _send(self, target: int, kind: Kind, descriptor: int) -> bool:
        try:
            self.handover.inboxes.send(target, kind, descriptor)
        except OSError as exc:  # the inbox is full, or too many descriptors are on their way
            self.complain(f"a connection could not be handed to instance={target} (%s) and stays here", exc)
            return False
        return True

    def _candidates(self) -> Iterator[Candidate]:
        siblings = self._around()
        if len(siblings) > SAMPLE:
            siblings = random.sample(siblings, SAMPLE)
        for slot, row in siblings:
            waiting = self.handover.inboxes.waiting(slot)
            load = Load(row[IN_HAND] + waiting, row[CONNECTIONS] + waiting)
            yield Candidate(slot, load, bool(row[Item.ACCEPTING]), row[Item.HEARTBEAT])

    def _around(self) -> list[tuple[int, Row]]:
        """The other workers that serve, by slot and row; once this one has retired, its successor too."""
        board = self.handover.scoreboard
        if self._known != board.changes:
            self._known = board.changes
            rows = ((number // ROWS_PER_SLOT, board.row(number)) for number in board.serving())
            retired = not self.row[Item.SERVING]
            self._siblings = [(slot, row) for slot, row in rows if slot != self.slot or retired]
        return self._siblings

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """The lock that makes choosing and sending one step; False when it was not to be had in time.

        The kernel releases it when its holder dies; a holder that is stopped keeps it.
        """
        deadline = 0.0
        while not self._lock():
            now = time.monotonic()
            deadline = deadline or now + LOCK_PATIENCE
            if now > deadline:
                yield False
                return
            os.sched_yield()
        try:
            yield True
        finally:
            fcntl.lockf(self.handover.lock, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self.handover.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

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
        return self.handover.inboxes.reader(self.slot).fileno()

    @property
    def waiting(self) -> int:
        """How many connections lie in this slot's inbox."""
        return self.handover.inboxes.waiting(self.slot)

    def take(self) -> bool:
        """Adopt one connection from this slot's inbox."""
        handed = self._receive(self.slot)
        if handed is None:
            return False
        self._count(handed.kind)
        self._adopt(handed)
        return True

    def empty(self) -> None:
        """Pass on what is in this slot's inbox, from a worker that retires; what nobody takes stays here."""
        for handed in self._received(self.slot):
            if self.passes_on(handed.kind, handed.connection.fileno()):
                handed.connection.close()
            else:
                self._count(handed.kind)
                self._adopt(handed)

    def place_inbox_anew(self) -> None:
        """Place anew what lies in this slot's own inbox."""
        self._place_anew(self.slot)

    def sweep(self) -> None:
        """Place anew what lies in the inboxes of workers that are gone, retired, stopped or blocked."""
        now = time.monotonic()
        attended = {self.slot}
        for slot, row in self._around():
            if row[Item.ACCEPTING] and now - row[Item.HEARTBEAT] < UNATTENDED:
                attended.add(slot)
        for slot in range(self.handover.scoreboard.used_slots):
            if slot not in attended and self.handover.inboxes.waiting(slot):
                self._place_anew(slot)

    def _place_anew(self, slot: int) -> None:
        for handed in self._received(slot):
            if self.keeps(handed.kind, handed.connection.fileno()):
                self._adopt(handed)
            else:
                handed.connection.close()

    def _received(self, slot: int) -> Iterator[Handed]:
        """What is in an inbox now: some of it may be sent there again."""
        for _ in range(self.handover.inboxes.waiting(slot)):
            handed = self._receive(slot)
            if handed is None:
                return
            yield handed

    def _receive(self, slot: int) -> Handed | None:
        try:
            return self.handover.inboxes.receive(slot)
        except OSError as exc:  # no descriptors left
            self.complain("a connection could not be taken (%s) and waits on", exc)
            return None
