"""Doors of several workers over one handover, all in this process; a worker adopts into a list."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from multicore_server.connections import dispatcher as module
from multicore_server.connections.dispatcher import Dispatcher, Handover
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.ipc.heartbeat import STALE
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard


class House:
    """``workers`` that serve, one in each slot."""

    def __init__(self, workers: int) -> None:
        self.handover = Handover.make(Scoreboard(workers), workers)
        self.serving = {slot * ROWS_PER_SLOT for slot in range(workers)}
        self.adopted: list[tuple[int, Handed]] = []
        self.ends = socket.socketpair()
        self.descriptor = self.ends[0].fileno()
        self.doors = [self.dispatcher(slot, slot * ROWS_PER_SLOT) for slot in range(workers)]
        self.publish()

    def dispatcher(self, slot: int, row: int, *, inline: bool = False) -> Dispatcher:
        def adopt(handed: Handed) -> None:
            self.adopted.append((row, handed))

        dispatcher = Dispatcher(self.handover, slot, self.handover.scoreboard.row(row), adopt, inline=inline)
        dispatcher.open()
        dispatcher.row[Item.HEARTBEAT] = time.monotonic()
        return dispatcher

    def publish(self) -> None:
        self.handover.scoreboard.publish(frozenset(self.serving))

    def waiting(self) -> list[int]:
        return [self.handover.inboxes.waiting(slot) for slot in range(len(self.doors))]

    def adopters(self) -> Counter[int]:
        return Counter(row for row, _ in self.adopted)

    def close(self) -> None:
        for sockets in (*self.handover.inboxes._pairs, self.ends, [h.connection for _, h in self.adopted]):
            for each in sockets:
                each.close()
        os.close(self.handover.lock)


Build = Callable[[int], House]


@pytest.fixture
def build() -> Iterator[Build]:
    houses: list[House] = []

    def build(workers: int) -> House:
        houses.append(House(workers))
        return houses[-1]

    yield build
    for house in houses:
        house.close()


def fill(house: House, slot: int) -> None:
    while True:
        house.handover.inboxes.send(slot, Kind.NEW, house.descriptor)


def load(house: House) -> list[float]:
    return [dispatcher.row[Item.IN_HAND] + dispatcher.waiting for dispatcher in house.doors]


def test_a_burst_is_spread_evenly_whoever_accepts(build: Build) -> None:
    house = build(4)
    for number in range(20):
        house.doors[0 if number < 10 else number % 4].keeps(Kind.NEW, house.descriptor)
        assert max(load(house)) - min(load(house)) <= 1
    assert sum(load(house)) == 20


def test_what_is_taken_counts_on(build: Build) -> None:
    house = build(2)
    house.doors[0].keeps(Kind.NEW, house.descriptor)
    assert not house.doors[0].keeps(Kind.NEW, house.descriptor)
    assert house.doors[1].take()
    assert not house.doors[1].take()
    assert load(house) == [1, 1]
    assert house.adopters() == {ROWS_PER_SLOT: 1}


def test_kept_alive_connections_are_not_in_hand(build: Build) -> None:
    house = build(2)
    assert house.doors[0].passes_on(Kind.KEPT_ALIVE, house.descriptor)
    house.doors[1].take()
    assert (house.doors[1].row[Item.IN_HAND], house.doors[1].row[Item.CONNECTIONS]) == (0, 1)


@pytest.mark.parametrize("how", ["gone", "retired", "stale"])
def test_an_unattended_inbox_is_swept(build: Build, how: str) -> None:
    house = build(3)
    for _ in range(6):
        house.handover.inboxes.send(2, Kind.NEW, house.descriptor)
    house.doors[0].sweep()
    assert house.waiting() == [0, 0, 6]  # its owner is well
    if how == "gone":
        house.serving.remove(2 * ROWS_PER_SLOT)
        house.publish()
    elif how == "retired":
        house.doors[2].row[Item.ACCEPTING] = 0
    else:
        house.doors[2].row[Item.HEARTBEAT] -= STALE
    house.doors[0].sweep()
    assert house.waiting() == [0, 3, 0]
    assert house.adopters() == {0: 3}


def test_the_last_worker_keeps_everything(build: Build) -> None:
    house = build(2)
    house.handover.inboxes.send(1, Kind.NEW, house.descriptor)
    house.serving.clear()
    house.publish()
    assert house.doors[0].keeps(Kind.NEW, house.descriptor)
    assert not house.doors[0].passes_on(Kind.NEW, house.descriptor)
    assert not house.doors[0].has_sibling()
    house.doors[0].sweep()
    assert house.adopters() == {0: 1}


def test_a_retired_worker_leaves_all_to_its_successor(build: Build) -> None:
    house = build(1)
    old = house.doors[0]
    house.handover.inboxes.send(0, Kind.NEW, house.descriptor)
    new = house.dispatcher(0, 1)
    house.serving = {1}
    house.publish()
    old.close()
    assert old.has_sibling()
    old.empty()
    assert old.passes_on(Kind.KEPT_ALIVE, house.descriptor)
    assert house.adopted == []
    new.sweep()
    while new.take():
        pass
    assert house.adopters() == {1: 2}


def test_empty_without_siblings_adopts(build: Build) -> None:
    house = build(2)
    for _ in range(3):
        house.handover.inboxes.send(0, Kind.NEW, house.descriptor)
    house.doors[0].close()
    house.doors[1].close()
    house.doors[0].empty()
    assert house.waiting() == [0, 0]
    assert house.adopters() == {0: 3}
    assert house.doors[0].row[Item.IN_HAND] == 3


def test_a_surplus_is_shared_with_who_has_the_fewest(build: Build) -> None:
    house = build(3)
    first, second, third = house.doors
    first.row[Item.CONNECTIONS], second.row[Item.CONNECTIONS], third.row[Item.CONNECTIONS] = 6, 1, 2
    assert [dispatcher.surplus() for dispatcher in house.doors] == [2, 0, 0]
    assert first.shares(Kind.KEPT_ALIVE, house.descriptor)
    first.row[Item.CONNECTIONS] = 3
    assert house.waiting() == [0, 1, 0], "what lies in an inbox counts"
    assert not first.shares(Kind.KEPT_ALIVE, house.descriptor), "3, 2, 2 is even"
    assert first.row[Item.MIGRATED] == 1


def test_what_stays_with_an_inline_worker_waits_in_its_inbox_while_something_is_in_hand(
    build: Build,
) -> None:
    house = build(2)
    inline = house.dispatcher(0, 0, inline=True)
    house.doors[1].row[Item.IN_HAND] = 5
    assert inline.keeps(Kind.NEW, house.descriptor)
    assert not inline.keeps(Kind.NEW, house.descriptor)
    assert (inline.row[Item.IN_HAND], house.waiting()) == (1, [1, 0])
    assert inline.row[Item.HANDED_OVER] == 0, "it is its own inbox"


def test_set_aside_goes_where_less_is_in_hand(build: Build) -> None:
    house = build(2)
    first, second = house.doors
    first.row[Item.IN_HAND] = second.row[Item.IN_HAND] = 2
    assert first.sets_aside(Kind.NEW, house.descriptor)
    first.row[Item.IN_HAND] = 3
    assert first.sets_aside(Kind.NEW, house.descriptor)
    assert house.waiting() == [1, 1]
    second.close()
    house.serving.remove(ROWS_PER_SLOT)
    house.publish()
    assert not first.sets_aside(Kind.NEW, house.descriptor), "who is alone keeps it"


def test_its_own_inbox_is_placed_anew(build: Build) -> None:
    house = build(2)
    house.doors[0].row[Item.IN_HAND] = 1  # one that takes long
    for _ in range(3):
        house.handover.inboxes.send(0, Kind.NEW, house.descriptor)
    house.doors[0].place_inbox_anew()
    assert sum(load(house)) == 4
    assert load(house) == [2, 2]


def test_a_full_inbox_is_told_once(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    house = build(2)
    caplog.set_level(logging.WARNING, "gunicorn.error")
    with pytest.raises(BlockingIOError):
        fill(house, 1)
    house.doors[0].row[Item.IN_HAND] = 100_000
    for _ in range(3):
        assert house.doors[0].keeps(Kind.NEW, house.descriptor)
    assert house.doors[0].row[Item.IN_HAND] == 100_003
    assert len(caplog.records) == 1
    assert "could not be handed to instance=1" in caplog.text


LOCKER = (
    "import fcntl, os, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


def test_a_stopped_process_that_has_the_lock(build: Build) -> None:
    house = build(2)
    house.doors[0].row[Item.IN_HAND] = 9
    lock = house.handover.lock
    command = [sys.executable, "-c", LOCKER, str(lock)]
    holder = subprocess.Popen(command, pass_fds=[lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert house.doors[0].keeps(Kind.NEW, house.descriptor)
        assert not house.doors[0].passes_on(Kind.KEPT_ALIVE, house.descriptor)
        assert time.monotonic() - started < 0.1  # 2 ms, and what a busy machine adds
        house.doors[1].close()
        assert time.monotonic() - started < 0.1 + 2 * module.CLOSE_PATIENCE
        holder.kill()
    house.doors[1].open()
    house.doors[1].row[Item.HEARTBEAT] = time.monotonic()
    assert not house.doors[0].keeps(Kind.NEW, house.descriptor)  # released with its holder


@pytest.mark.parametrize("workers", [8, 64])
def test_the_cost_of_a_choice_is_bounded(
    build: Build, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house = build(workers)
    looked_at: list[int] = []
    waiting = house.handover.inboxes.waiting
    started = time.perf_counter()
    for _ in range(200):
        house.doors[0]._least_loaded()
    cost = (time.perf_counter() - started) / 200
    with capsys.disabled():
        print(f"\n{workers} workers: {cost * 1e6:.0f} us a choice")

    def noted(slot: int) -> int:
        looked_at.append(slot)
        return waiting(slot)

    monkeypatch.setattr(house.handover.inboxes, "waiting", noted)
    house.doors[0]._least_loaded()
    assert len(looked_at) == min(workers, module.SAMPLE + 1)
