"""A worker's door: places the connections that arrive, takes what is in inboxes, passes on what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from multicore_server.connections.inboxes import Handed, Inboxes, Kind
from multicore_server.connections.placement import STALE, Candidate, Load, least_loaded
from multicore_server.scoreboard import Item, Row, Scoreboard
from multicore_server.slots import ROWS_PER_SLOT

LOCK_PATIENCE = 0.001  # seconds: whoever holds the lock may have been stopped
CLOSE_PATIENCE = 0.1  # the same, where nothing waits behind it
SAMPLE = 16  # candidates looked at for one choice: it stays cheap with any number of workers
QUIET = 10.0  # seconds between two log lines about the same trouble

logger = logging.getLogger("gunicorn.error")


class Exchange(NamedTuple):
    """What all workers share, made once before the first fork."""

    scoreboard: Scoreboard
    inboxes: Inboxes
    lock: int  # a memfd to lock

    @classmethod
    def make(cls, scoreboard: Scoreboard, slots: int) -> Exchange:
        return cls(scoreboard, Inboxes(slots), os.memfd_create("placement"))


class Door:
    """``adopt`` makes a connection that was in an inbox this worker's own."""

    def __init__(self, exchange: Exchange, slot: int, row: Row, adopt: Callable[[Handed], None]) -> None:
        self.exchange = exchange
        self.slot = slot
        self.row = row
        self._adopt = adopt
        self._siblings: list[tuple[int, Row]] = []
        self._known = -1.0
        self._complained = 0.0
        row[Item.IN_HAND] = row[Item.CONNECTIONS] = 0  # the row's last owner may have been killed

    def open(self) -> None:
        self.row[Item.ACCEPTING] = 1

    def close(self) -> None:
        """Take no more connections. Under the lock: what was sent here before can be found in the inbox."""
        deadline = time.monotonic() + CLOSE_PATIENCE
        closed = False
        while not closed and time.monotonic() < deadline:
            with self._locked() as closed:
                self.row[Item.ACCEPTING] = 0

    # --- what this worker has in hand; its row has one writer, this ---

    def busier(self, by: int) -> None:
        self.row[Item.IN_HAND] += by

    def connections(self, number: int) -> None:
        self.row[Item.CONNECTIONS] = number

    # --- placing ---

    def keeps(self, kind: Kind, descriptor: int) -> bool:
        """Place a connection: True if it stays here, and is counted; False if a sibling has it.

        Whatever goes wrong on the way to a sibling, it stays here.
        """
        if not self._around():
            self._count(kind)
            return True
        with self._locked() as locked:
            target = self._least_loaded() if locked else self.slot
            if target == self.slot or not self._send(target, kind, descriptor):
                self._count(kind)
                return True
            return False

    def passes_on(self, kind: Kind, descriptor: int) -> bool:
        """Give a connection to a sibling, without a place for it here. False: there is none, or no way."""
        if not self._around():
            return False
        with self._locked() as locked:
            target = least_loaded(None, self._candidates(), time.monotonic()) if locked else None
            return target is not None and self._send(target, kind, descriptor)

    def has_sibling(self) -> bool:
        now = time.monotonic()
        return any(candidate.can_take(now) for candidate in self._candidates())

    def _count(self, kind: Kind) -> None:
        """At once, for the next choice, which may be made before the connection is set up."""
        self.row[Item.CONNECTIONS] += 1
        if kind is Kind.NEW:
            self.row[Item.IN_HAND] += 1

    def _least_loaded(self) -> int:
        row, waiting = self.row, self.exchange.inboxes.waiting(self.slot)
        load = Load(row[Item.IN_HAND] + waiting, row[Item.CONNECTIONS] + waiting)
        own = Candidate(self.slot, load, True, 0.0)
        chosen = least_loaded(own, self._candidates(), time.monotonic())
        assert chosen is not None
        return chosen

    def _send(self, target: int, kind: Kind, descriptor: int) -> bool:
        try:
            self.exchange.inboxes.send(target, kind, descriptor)
        except OSError as exc:  # the inbox is full, or too many descriptors are on their way
            self._complain(target, exc)
            return False
        return True

    def _candidates(self) -> Iterator[Candidate]:
        siblings = self._around()
        if len(siblings) > SAMPLE:
            siblings = random.sample(siblings, SAMPLE)
        for slot, row in siblings:
            waiting = self.exchange.inboxes.waiting(slot)
            load = Load(row[Item.IN_HAND] + waiting, row[Item.CONNECTIONS] + waiting)
            yield Candidate(slot, load, bool(row[Item.ACCEPTING]), row[Item.HEARTBEAT])

    def _around(self) -> list[tuple[int, Row]]:
        """The workers of the other slots, by slot and row."""
        board = self.exchange.scoreboard
        if self._known != board.changes:
            self._known = board.changes
            rows = ((number // ROWS_PER_SLOT, board.row(number)) for number in board.serving())
            self._siblings = [(slot, row) for slot, row in rows if slot != self.slot]
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
            fcntl.lockf(self.exchange.lock, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self.exchange.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _complain(self, target: int, exc: OSError) -> None:
        now = time.monotonic()
        if now - self._complained > QUIET:
            self._complained = now
            logger.warning("a connection could not be handed to instance=%s (%s) and stays here", target, exc)

    # --- inboxes ---

    @property
    def inbox(self) -> int:
        """The descriptor that is readable when something lies in this slot's inbox."""
        return self.exchange.inboxes.reader(self.slot).fileno()

    def take(self) -> bool:
        """Adopt one connection from this slot's inbox."""
        handed = self.exchange.inboxes.receive(self.slot)
        if handed is None:
            return False
        self._count(handed.kind)
        self._adopt(handed)
        return True

    def empty(self) -> None:
        """Pass on what is in this slot's inbox, from a worker that retires; what nobody takes stays here."""
        while (handed := self.exchange.inboxes.receive(self.slot)) is not None:
            if self.passes_on(handed.kind, handed.connection.fileno()):
                handed.connection.close()
            else:
                self._count(handed.kind)
                self._adopt(handed)

    def sweep(self) -> None:
        """Place anew what lies in the inboxes of workers that are gone, retired, stopped or blocked."""
        now = time.monotonic()
        owners = dict(self._around())
        for slot in range(self.exchange.scoreboard.used_slots):
            if slot != self.slot and self.exchange.inboxes.waiting(slot):
                row = owners.get(slot)
                if row is None or not row[Item.ACCEPTING] or now - row[Item.HEARTBEAT] >= STALE:
                    self._place_anew(slot)

    def _place_anew(self, slot: int) -> None:
        while (handed := self.exchange.inboxes.receive(slot)) is not None:
            if self.keeps(handed.kind, handed.connection.fileno()):
                self._adopt(handed)
            else:
                handed.connection.close()
