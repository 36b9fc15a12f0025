"""Dispatchers of several workers over one handover, all in this process."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicore_server.connections import dispatcher as module
from multicore_server.connections import siblings
from multicore_server.connections.dispatcher import KEPT, SENT, Dispatcher
from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import BATCH, Handed, Kind, Sent
from multicore_server.connections.placement import Candidate, Load, least_loaded
from multicore_server.ipc.heartbeat import BEAT, LATE
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard


class Fleet:
    """``workers`` that serve, one in each slot."""

    def __init__(self, workers: int) -> None:
        self.handover = Handover.make(Scoreboard(workers), workers)
        self.serving = {slot * ROWS_PER_SLOT for slot in range(workers)}
        self.adopted: list[Handed] = []
        self.ends = socket.socketpair()
        self.descriptor = self.ends[0].fileno()
        self.dispatchers = [self.dispatcher(slot, slot * ROWS_PER_SLOT) for slot in range(workers)]
        self.publish()

    def dispatcher(self, slot: int, row: int, *, inline: bool = False) -> Dispatcher:
        dispatcher = Dispatcher(self.handover, slot, self.handover.scoreboard.row(row), inline=inline)
        dispatcher.open()
        dispatcher.row[Item.BEAT_DUE] = time.monotonic() + 10.0
        return dispatcher

    def publish(self) -> None:
        self.handover.scoreboard.publish(frozenset(self.serving))

    def waiting(self) -> list[int]:
        return [self.handover.inboxes.waiting(slot) for slot in range(len(self.dispatchers))]

    def adopt(self, connections: list[Handed]) -> int:
        """How many they are; their descriptors are closed at the end of the test."""
        self.adopted += connections
        return len(connections)

    def take_all(self, dispatcher: Dispatcher) -> int:
        count = 0
        while taken := dispatcher.take():
            count += self.adopt(taken)
        return count

    def close(self) -> None:
        self.handover.inboxes.close()
        for each in (*self.ends, *(handed.connection for handed in self.adopted)):
            each.close()
        os.close(self.handover.lock)


Build = Callable[[int], Fleet]


@pytest.fixture
def build() -> Iterator[Build]:
    fleets: list[Fleet] = []

    def build(workers: int) -> Fleet:
        fleets.append(Fleet(workers))
        return fleets[-1]

    yield build
    for fleet in fleets:
        fleet.close()


def fill(fleet: Fleet, slot: int) -> None:
    while True:
        fleet.handover.inboxes.send(slot, [Sent(Kind.NEW, fleet.descriptor)])


def load(fleet: Fleet) -> list[float]:
    return [dispatcher.row[Item.IN_HAND] + dispatcher.waiting for dispatcher in fleet.dispatchers]


def test_a_burst_is_spread_evenly_whoever_accepts(build: Build) -> None:
    fleet = build(4)
    for number in range(20):
        fleet.dispatchers[0 if number < 10 else number % 4].dispatch(Kind.NEW, fleet.descriptor)
        assert max(load(fleet)) - min(load(fleet)) <= 1
    assert sum(load(fleet)) == 20


def test_what_is_taken_counts_on(build: Build) -> None:
    fleet = build(2)
    assert fleet.dispatchers[0].dispatch(Kind.NEW, fleet.descriptor) is KEPT
    assert fleet.dispatchers[0].dispatch(Kind.NEW, fleet.descriptor) is SENT
    assert fleet.take_all(fleet.dispatchers[1]) == 1
    assert load(fleet) == [1, 1]


def test_a_quick_worker_keeps_what_it_answers_at_once(build: Build) -> None:
    fleet = build(2)
    quick = fleet.dispatchers[0]
    quick.beat(0, 0)
    time.sleep(0.01)
    quick.beat(0, 100_000)  # at least two a millisecond
    assert quick.is_quick(2)
    assert [quick.dispatch(Kind.NEW, fleet.descriptor) for _ in range(2)] == [KEPT, KEPT]
    assert (quick.row[Item.IN_HAND], quick.row[Item.UNREAD], quick.row[Item.CONNECTIONS]) == (2, 2, 2)


def test_kept_alive_connections_are_not_in_hand(build: Build) -> None:
    fleet = build(2)
    assert fleet.dispatchers[0].hand_over([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is SENT
    assert fleet.take_all(fleet.dispatchers[1]) == 1
    assert (fleet.dispatchers[1].row[Item.IN_HAND], fleet.dispatchers[1].row[Item.CONNECTIONS]) == (0, 1)


@pytest.mark.parametrize("how", ["gone", "retired", "stale"])
def test_an_unattended_inbox_is_swept(build: Build, how: str) -> None:
    fleet = build(3)
    for _ in range(6):
        fleet.handover.inboxes.send(2, [Sent(Kind.NEW, fleet.descriptor)])
    assert fleet.dispatchers[0].sweep() == ([], 0)
    assert fleet.waiting() == [0, 0, 6]  # its owner is well
    if how == "gone":
        fleet.serving.remove(2 * ROWS_PER_SLOT)
        fleet.publish()
    elif how == "retired":
        fleet.dispatchers[2].row[Item.ACCEPTING] = 0
    else:
        fleet.dispatchers[2].row[Item.BEAT_DUE] = time.monotonic() - LATE
    assert fleet.adopt(fleet.dispatchers[0].sweep().kept) == 3
    assert fleet.waiting() == [0, 3, 0]


def test_a_worker_that_rests_is_expected_to_wake(build: Build) -> None:
    fleet = build(2)
    woken: list[str] = []
    asks, rests = fleet.dispatchers
    asks.wake, rests.wake = lambda: woken.append("asks"), lambda: woken.append("rests")
    asks.row[Item.IN_HAND], rests.row[Item.BEAT_DUE] = 1, time.monotonic() + 60
    before = time.monotonic()
    assert asks.dispatch(Kind.NEW, fleet.descriptor) is SENT
    assert before + BEAT <= rests.row[Item.BEAT_DUE] <= time.monotonic() + BEAT
    assert woken == ["asks"], "it is to see whether the connection is taken"
    due = rests.row[Item.BEAT_DUE]
    assert asks.hand_over([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is SENT
    assert rests.row[Item.BEAT_DUE] == due, "what is due is not put off"
    assert fleet.take_all(rests) == 2
    assert "rests" in woken


def test_workers_that_rest_look_at_the_inboxes_behind_their_own(build: Build) -> None:
    fleet = build(12)
    for slot in range(12):
        fleet.dispatchers[slot].row[Item.BEAT_DUE] = time.monotonic() - LATE
    for dispatcher in fleet.dispatchers:
        assert len(dispatcher.siblings.unattended()) == 11
        assert dispatcher.siblings.unattended(8) == [(dispatcher.slot + step) % 12 for step in range(1, 9)]
    fleet.handover.inboxes.send(1, [Sent(Kind.NEW, fleet.descriptor)])
    for slot in (2, 0):
        fleet.dispatchers[slot].wake = lambda: None
    assert fleet.adopt(fleet.dispatchers[2].sweep().kept) == 0
    assert fleet.adopt(fleet.dispatchers[0].sweep().kept) == 1


def test_the_first_workers_look_after_all_inboxes_also_while_they_rest(build: Build) -> None:
    fleet = build(12)
    assert [it.siblings.is_on_duty for it in fleet.dispatchers] == [True, True, *[False] * 10]
    fleet.serving.remove(0)
    fleet.publish()
    assert [it.siblings.is_on_duty for it in fleet.dispatchers[1:]] == [True, True, *[False] * 9]
    fleet.dispatchers[11].row[Item.BEAT_DUE] = time.monotonic() - LATE
    fleet.handover.inboxes.send(11, [Sent(Kind.NEW, fleet.descriptor)])
    for dispatcher in fleet.dispatchers:
        dispatcher.wake = lambda: None
    assert fleet.adopt(fleet.dispatchers[1].sweep().kept) == 1


def test_the_last_worker_keeps_everything(build: Build) -> None:
    fleet = build(2)
    fleet.handover.inboxes.send(1, [Sent(Kind.NEW, fleet.descriptor)])
    fleet.serving.clear()
    fleet.publish()
    last = fleet.dispatchers[0]
    assert last.dispatch(Kind.NEW, fleet.descriptor) is KEPT
    assert last.hand_over([Sent(Kind.NEW, fleet.descriptor)]) is KEPT
    assert not last.siblings.exist()
    assert fleet.adopt(last.sweep().kept) == 1


def test_a_retired_worker_leaves_all_to_its_successor(build: Build) -> None:
    fleet = build(1)
    old = fleet.dispatchers[0]
    fleet.handover.inboxes.send(0, [Sent(Kind.NEW, fleet.descriptor)])
    new = fleet.dispatcher(0, 1)
    fleet.serving = {1}
    fleet.publish()
    old.close()
    assert old.siblings.exist()
    assert old.empty() == []
    assert old.hand_over([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is SENT
    assert fleet.take_all(new) == 2


def test_empty_without_siblings_adopts(build: Build) -> None:
    fleet = build(2)
    for _ in range(3):
        fleet.handover.inboxes.send(0, [Sent(Kind.NEW, fleet.descriptor)])
    fleet.dispatchers[0].close()
    fleet.dispatchers[1].close()
    assert fleet.adopt(fleet.dispatchers[0].empty()) == 3
    assert fleet.waiting() == [0, 0]
    assert fleet.dispatchers[0].row[Item.IN_HAND] == 3


def test_a_surplus_is_shared_with_who_has_the_fewest(build: Build) -> None:
    fleet = build(3)
    first, second, third = fleet.dispatchers
    first.row[Item.CONNECTIONS], second.row[Item.CONNECTIONS], third.row[Item.CONNECTIONS] = 6, 1, 2
    for dispatcher in fleet.dispatchers:
        dispatcher.measure_surplus()
    assert [dispatcher.surplus for dispatcher in fleet.dispatchers] == [2, 0, 0]
    assert first.rebalance([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is SENT
    first.row[Item.CONNECTIONS] = 3
    assert fleet.waiting() == [0, 1, 0], "what lies in an inbox counts"
    assert first.rebalance([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is KEPT, "3, 2, 2 is even"
    assert first.row[Item.MIGRATED] == 1
    assert first.surplus == 0


def test_several_are_shared_only_if_that_makes_it_more_even(build: Build) -> None:
    fleet = build(2)
    first, second = fleet.dispatchers
    first.row[Item.CONNECTIONS], second.row[Item.CONNECTIONS] = 10, 3
    three = [Sent(Kind.KEPT_ALIVE, fleet.descriptor)] * 3
    first.measure_surplus()
    assert first.surplus == 3
    assert first.rebalance([*three, *three[:1]]) is KEPT
    assert first.rebalance(three) is SENT
    assert (fleet.waiting(), first.row[Item.MIGRATED]) == ([0, 3], 3)


def test_idle_connections_stay_while_enough_of_them_wait_for_the_sibling(build: Build) -> None:
    fleet = build(2)
    first, second = fleet.dispatchers
    batch = [Sent(Kind.KEPT_ALIVE, fleet.descriptor)] * BATCH
    sent = 0
    while first.hand_over(batch) is SENT:
        sent += BATCH
    assert sent == module.ENOUGH
    assert first.hand_over(batch, math.inf) is SENT
    while second.waiting:
        fleet.adopt(second.take())
    assert second.row[Item.CONNECTIONS] == sent + BATCH
    assert first.hand_over(batch) is SENT


def test_one_that_is_busy_is_there_and_gets_nothing(build: Build) -> None:
    fleet = build(2)
    fleet.dispatchers[1].beat(0, 0, free=False)
    assert fleet.dispatchers[0].siblings.exist()
    assert fleet.dispatchers[0].hand_over([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is KEPT
    fleet.dispatchers[1].close()
    assert not fleet.dispatchers[0].siblings.exist()


def test_nothing_is_shared_with_nobody(build: Build) -> None:
    fleet = build(1)
    alone = fleet.dispatchers[0]
    alone.row[Item.CONNECTIONS] = 6
    alone.measure_surplus()
    assert alone.surplus == 0
    assert alone.rebalance([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is KEPT


def test_what_stays_with_an_inline_worker_waits_in_its_inbox_while_something_is_in_hand(
    build: Build,
) -> None:
    fleet = build(2)
    inline = fleet.dispatcher(0, 0, inline=True)
    fleet.dispatchers[1].row[Item.IN_HAND] = 5
    assert inline.dispatch(Kind.NEW, fleet.descriptor) is KEPT
    assert inline.dispatch(Kind.NEW, fleet.descriptor) is SENT
    assert (inline.row[Item.IN_HAND], fleet.waiting()) == (1, [1, 0])
    assert inline.row[Item.HANDED_OVER] == 0, "it is its own inbox"


def test_set_aside_goes_where_less_is_in_hand(build: Build) -> None:
    fleet = build(2)
    first, second = fleet.dispatchers
    first.row[Item.IN_HAND] = second.row[Item.IN_HAND] = 2
    assert first.set_aside([Sent(Kind.NEW, fleet.descriptor)]) is SENT
    first.row[Item.IN_HAND] = 3
    assert first.set_aside([Sent(Kind.NEW, fleet.descriptor)]) is SENT
    assert fleet.waiting() == [1, 1]
    second.close()
    fleet.serving.remove(ROWS_PER_SLOT)
    fleet.publish()
    assert first.set_aside([Sent(Kind.NEW, fleet.descriptor)]) is KEPT, "who is alone keeps it"


def test_its_own_inbox_is_placed_anew(build: Build) -> None:
    fleet = build(2)
    fleet.dispatchers[0].row[Item.IN_HAND] = 1  # one that takes long
    for _ in range(3):
        fleet.handover.inboxes.send(0, [Sent(Kind.NEW, fleet.descriptor)])
    fleet.adopt(fleet.dispatchers[0].place_inbox_anew().kept)
    assert sum(load(fleet)) == 4
    assert load(fleet) == [2, 2]


def test_a_full_inbox_is_told_once(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    fleet = build(2)
    caplog.set_level(logging.WARNING, "gunicorn.error")
    with pytest.raises(BlockingIOError):
        fill(fleet, 1)
    fleet.dispatchers[0].row[Item.IN_HAND] = 100_000
    for _ in range(3):
        assert fleet.dispatchers[0].dispatch(Kind.NEW, fleet.descriptor) is KEPT
    assert fleet.dispatchers[0].row[Item.IN_HAND] == 100_003
    assert len(caplog.records) == 1
    assert "could not be handed to instance=1" in caplog.text


LOCKER = (
    "import fcntl, os, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


def test_a_stopped_process_that_has_the_lock(build: Build) -> None:
    fleet = build(2)
    fleet.dispatchers[0].row[Item.IN_HAND] = 9
    lock = fleet.handover.lock
    command = [sys.executable, "-c", LOCKER, str(lock)]
    holder = subprocess.Popen(command, pass_fds=[lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        assert fleet.dispatchers[0].dispatch(Kind.NEW, fleet.descriptor) is KEPT
        assert fleet.dispatchers[0].hand_over([Sent(Kind.KEPT_ALIVE, fleet.descriptor)]) is KEPT
        assert time.monotonic() - started < 0.1  # 2 ms, and what a busy machine adds
        fleet.dispatchers[1].close()
        assert time.monotonic() - started < 0.1 + 2 * module.CLOSE_PATIENCE
        holder.kill()
    fleet.dispatchers[1].open()
    fleet.dispatchers[1].row[Item.BEAT_DUE] = time.monotonic() + 10.0
    # The lock is released with its holder.
    assert fleet.dispatchers[0].dispatch(Kind.NEW, fleet.descriptor) is SENT


@pytest.mark.parametrize("workers", [8, 64])
def test_the_cost_of_a_choice_is_bounded(
    build: Build, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = build(workers)
    looked_at: list[int] = []
    waiting = fleet.handover.inboxes.waiting
    started = time.perf_counter()
    for _ in range(200):
        fleet.dispatchers[0].siblings.least_loaded()
    cost = (time.perf_counter() - started) / 200
    with capsys.disabled():
        print(f"\n{workers} workers: {cost * 1e6:.0f} us a choice")

    def noted(slot: int) -> int:
        looked_at.append(slot)
        return waiting(slot)

    monkeypatch.setattr(fleet.dispatchers[0].siblings, "_waiting", noted)
    fleet.dispatchers[0].siblings.least_loaded()
    assert len(looked_at) == min(workers, siblings.SAMPLE + 1)


# --- the choice, and what needs none


ROWS = st.tuples(
    st.integers(0, 4),  # in hand
    st.integers(0, 4),  # connections
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, LATE / 2, 2 * LATE]),  # age of the heartbeat
    st.integers(0, 2),  # in the inbox
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=siblings.SAMPLE + 1))
def test_the_quick_choice_is_the_pure_one(rows: list[tuple[int, int, float, float, int]]) -> None:
    fleet = Fleet(len(rows))
    try:
        now = time.monotonic()
        for dispatcher, (in_hand, connections, accepting, age, lying) in zip(
            fleet.dispatchers, rows, strict=True
        ):
            row = dispatcher.row
            row[Item.IN_HAND], row[Item.CONNECTIONS] = in_hand, connections
            row[Item.ACCEPTING], row[Item.BEAT_DUE] = accepting, now - age
            for _ in range(lying):
                fleet.handover.inboxes.send(dispatcher.slot, [Sent(Kind.NEW, fleet.descriptor)])
        candidates = [
            Candidate(slot, Load(it[0] + it[4], it[1] + it[4]), it[2] == 1.0, now - it[3])
            for slot, it in enumerate(rows)
        ]
        own = candidates[0] if candidates[0].accepting else None
        chosen = fleet.dispatchers[0].siblings.least_loaded()
        expected = least_loaded(own, candidates[1:], now)
        assert candidates[chosen].load == candidates[0 if expected is None else expected].load
        assert (expected is None or expected == 0) == (chosen == 0)
    finally:
        fleet.close()


def busy(fleet: Fleet, slot: int, answered: int, in_hand: int) -> Dispatcher:
    """A worker that has answered so many requests in a tenth of a second."""
    dispatcher = fleet.dispatchers[slot]
    dispatcher._beat_at = time.monotonic() - 0.1
    dispatcher.beat(0, answered)
    dispatcher.row[Item.IN_HAND] = in_hand
    return dispatcher


@pytest.mark.parametrize(
    ("rate", "slack"), [(1_000, 3), (2_000, 8), (4_000, 24), (8_000, 80), (10_000, 100), (30_000, 300)]
)
def test_a_quick_worker_keeps_a_few_more_than_its_siblings_have(build: Build, rate: int, slack: int) -> None:
    """What it answers within `WORTHWHILE`, and more where requests are short beside a hand-over."""
    fleet = build(2)
    one = busy(fleet, 0, answered=rate // 10, in_hand=0)
    theirs = slack  # more than it takes without a look around
    one.row[Item.IN_HAND], fleet.dispatchers[1].row[Item.IN_HAND] = theirs + 0.8 * slack - 1, theirs
    before = one.row[Item.IN_HAND]
    assert one.take_new()
    assert (one.row[Item.IN_HAND], one.row[Item.UNREAD], one.row[Item.CONNECTIONS]) == (before + 1, 1, 1)
    one.row[Item.IN_HAND] = theirs + slack
    assert not one.take_new()
    assert one.row[Item.IN_HAND] == theirs + slack


def test_a_slow_worker_and_an_inline_one_look_around(build: Build) -> None:
    fleet = build(2)
    slow = busy(fleet, 0, answered=10, in_hand=0)  # 100 a second
    assert not slow.take_new()
    inline = fleet.dispatcher(1, ROWS_PER_SLOT, inline=True)
    inline._beat_at = time.monotonic() - 0.1
    inline.beat(0, 1000)
    inline.row[Item.IN_HAND] = fleet.dispatchers[0].row[Item.IN_HAND] = 30
    assert not inline.take_new()
    inline.row[Item.IN_HAND] = 3
    assert inline.take_new()
