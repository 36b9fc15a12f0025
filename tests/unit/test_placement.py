"""Which worker gets a connection: tables, and what holds for any fleet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.connections.placement import Candidate, Load, least_loaded
from multicore_server.ipc.heartbeat import LATE

NOW = 100.0


def worker(slot: int, in_hand: float = 0, connections: float = 0, accepting: bool = True) -> Candidate:
    return Candidate(slot, Load(in_hand, connections), accepting, NOW)


def hung(slot: int, for_seconds: float) -> Candidate:
    return worker(slot)._replace(beat_due=NOW - for_seconds)


@pytest.mark.parametrize(
    ("own", "others", "chosen"),
    [
        (worker(0), [], 0),
        (None, [], None),
        (worker(0), [worker(1)], 0),  # the one that asks on a tie
        (worker(0, 1), [worker(1)], 1),
        (worker(0, 1), [worker(1, 0, 9)], 1),  # what is in hand comes first
        (worker(0, 1, 3), [worker(1, 1, 2)], 1),  # then connections
        (worker(0, 5), [worker(1, 3), worker(2, 2), worker(3, 4)], 2),
        (worker(0, 5), [worker(1, accepting=False)], 0),
        (worker(0, 5), [hung(1, LATE)], 0),
        (worker(0, 5), [hung(1, LATE * 0.9)], 1),
        (None, [worker(1, 7)], 1),
        (None, [worker(1, accepting=False), hung(2, 1.0)], None),
    ],
)
def test_choice(own: Candidate | None, others: list[Candidate], chosen: int | None) -> None:
    assert least_loaded(own, others, NOW) == chosen


loads = st.builds(Load, st.integers(0, 5), st.integers(0, 5))
ages = st.sampled_from([0.0, LATE / 2, LATE, 10 * LATE])
fleets = st.lists(st.tuples(loads, st.booleans(), ages), max_size=8).map(
    lambda rows: [
        Candidate(slot, load, accepting, NOW - age) for slot, (load, accepting, age) in enumerate(rows, 1)
    ]
)


@given(st.none() | loads.map(lambda load: Candidate(0, load, True, 0.0)), fleets)
def test_never_to_a_dead_draining_or_stale_worker(own: Candidate | None, others: list[Candidate]) -> None:
    able = [other for other in others if other.accepting and NOW - other.beat_due < LATE]
    able += [own] if own else []
    chosen = least_loaded(own, others, NOW)
    assert (chosen is None) == (not able)
    if chosen is not None:
        assert min(able, key=lambda candidate: candidate.load).load == {c.slot: c.load for c in able}[chosen]


@given(st.integers(1, 9), st.lists(st.integers(0, 8), max_size=60))
def test_a_burst_on_idle_workers_is_spread_evenly(workers: int, accepters: list[int]) -> None:
    placed = [0] * workers
    for accepter in accepters:
        candidates = [worker(slot, count, count) for slot, count in enumerate(placed)]
        own = candidates.pop(accepter % workers)
        chosen = least_loaded(own, candidates, NOW)
        assert chosen is not None
        placed[chosen] += 1
        assert max(placed) - min(placed) <= 1
