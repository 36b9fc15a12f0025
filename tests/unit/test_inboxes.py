"""Connections on their way from one worker to another: counted exactly, none lost, no descriptor leaked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from multicore_server.connections.inboxes import BATCH, Inboxes, Kind, Sent
from tests.support.descriptors import descriptors


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    inboxes = Inboxes(2)
    yield inboxes
    inboxes.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def fill(inboxes: Inboxes, pair: Pair) -> None:
    for _ in range(100_000):
        inboxes.send(0, [Sent(Kind.NEW, pair[0].fileno())])


def drained(inboxes: Inboxes, slot: int) -> int:
    count = 0
    while message := inboxes.receive(slot):
        for handed in message:
            handed.connection.close()
        count += len(message)
    return count


def test_a_connection_arrives_as_it_was(inboxes: Inboxes, pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"unread")
    inboxes.send(1, [Sent(Kind.KEPT_ALIVE, ours.fileno())])
    ours.close()
    assert inboxes.receive(0) == []
    (handed,) = inboxes.receive(1)
    assert handed.kind is Kind.KEPT_ALIVE
    with handed.connection:
        assert handed.connection.recv(10) == b"unread"
        assert not os.get_inheritable(handed.connection.fileno())


def test_waiting_is_exact(inboxes: Inboxes, pair: Pair) -> None:
    for count in range(1, 101):
        inboxes.send(0, [Sent(Kind(count % 2), pair[0].fileno())])
        assert (inboxes.waiting(0), inboxes.waiting(1)) == (count, 0)
    assert drained(inboxes, 0) == 100
    assert inboxes.waiting(0) == 0


def test_a_full_inbox_refuses_and_keeps_what_it_has(inboxes: Inboxes, pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        fill(inboxes, pair)
    waiting = inboxes.waiting(0)
    assert waiting > 100
    inboxes.send(1, [Sent(Kind.NEW, pair[0].fileno())])
    assert drained(inboxes, 0) == waiting


def test_thousands_of_hand_overs_leak_no_descriptor(inboxes: Inboxes, pair: Pair) -> None:
    before = descriptors()
    for _ in range(50):
        for _ in range(100):
            inboxes.send(0, [Sent(Kind.NEW, pair[0].fileno())])
        assert drained(inboxes, 0) == 100
    assert descriptors() == before


AT_THE_LIMIT = """
import errno, os, resource, socket
from multicore_server.connections.inboxes import Inboxes, Kind, Sent

inboxes = Inboxes(1)
ours, theirs = socket.socketpair()
for _ in range(3):
    inboxes.send(0, [Sent(Kind.NEW, ours.fileno())])
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []
while True:
    try:
        taken.append(os.dup(0))
    except OSError:
        break
for _ in range(2):
    try:
        inboxes.receive(0)
        raise SystemExit("received without a descriptor")
    except OSError as exc:
        assert exc.errno == errno.EMFILE
    assert inboxes.waiting(0) == 3
for left in (2, 1, 0):
    os.close(taken.pop())
    (received,) = inboxes.receive(0)
    assert inboxes.waiting(0) == left
    received.connection.close()
    taken.append(os.dup(0))
"""


def test_without_descriptors_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_LIMIT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_many_travel_in_one_message_and_are_counted_one_by_one(inboxes: Inboxes, pair: Pair) -> None:
    kinds = [Kind(number % 2) for number in range(BATCH)]
    before = descriptors()
    for sent in range(1, 11):
        inboxes.send(0, [Sent(kind, pair[0].fileno()) for kind in kinds])
        assert inboxes.waiting(0) == sent * BATCH
    message = inboxes.receive(0)
    assert [handed.kind for handed in message] == kinds
    assert inboxes.waiting(0) == 9 * BATCH
    for handed in message:
        assert not os.get_inheritable(handed.connection.fileno())
        handed.connection.close()
    assert drained(inboxes, 0) == 9 * BATCH
    assert descriptors() == before


MANY_AT_THE_LIMIT = """
import errno, os, resource, socket
from multicore_server.connections.inboxes import BATCH, Inboxes, Kind, Sent

inboxes = Inboxes(1)
ours, theirs = socket.socketpair()
inboxes.send(0, [Sent(Kind.KEPT_ALIVE, ours.fileno())] * BATCH)
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
taken = []
while True:
    try:
        taken.append(os.dup(0))
    except OSError:
        break
for free in range(BATCH):
    try:
        inboxes.receive(0)
        raise SystemExit(f"received {BATCH} with {free} descriptors")
    except OSError as exc:
        assert exc.errno == errno.EMFILE
    assert inboxes.waiting(0) == BATCH
    os.close(taken.pop())
assert len(inboxes.receive(0)) == BATCH
"""


def test_a_message_stays_until_there_are_descriptors_for_all_of_it() -> None:
    command = [sys.executable, "-W", "ignore", "-c", MANY_AT_THE_LIMIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
