"""Which heads are learned, how many, and when it does not pay to look for them."""

from __future__ import annotations

from typing import Any

import pytest

from multicore_server.connections import known_heads
from multicore_server.connections.known_heads import EACH, KNOWN, PAUSE, TRIAL, Known, KnownHeads
from tests.unit.known_heads.served import Worker


class Timers:
    """A loop's."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, Any]] = []

    def call_later(self, delay: float, call: Any) -> None:
        self.armed.append((delay, call))


def test_it_remembers_no_more_than_it_has_room_for() -> None:
    heads, known = KnownHeads(Timers()), Known({"asgi": {}, "headers": []}, keep_alive=True)
    for number in range(KNOWN + 1):
        heads.learn(b"%d" % number, known)
    assert heads.get(b"0") is None
    assert heads.get(b"1") is not None
    assert heads.get(b"%d" % KNOWN) is not None


def test_it_learns_some_of_the_heads_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_heads, "EACH", EACH)
    heads = KnownHeads(Timers())
    assert [heads.is_to_learn() for _ in range(TRIAL)].count(True) == TRIAL // EACH


@pytest.mark.parametrize(
    ("hits", "pays"), [(0, False), (TRIAL // 4, False), (TRIAL // 2, True), (1000, True)]
)
def test_it_does_not_look_for_heads_while_few_are_known(hits: int, pays: bool) -> None:
    timers = Timers()
    heads = KnownHeads(timers)
    for _ in range(2):
        heads.hits = hits
        for _ in range(TRIAL):
            assert not heads.rests
            heads.is_to_learn()
        assert heads.rests is not pays
        assert heads.hits == 0
        if not pays:
            [(delay, go_on)] = timers.armed
            assert delay == PAUSE
            timers.armed.clear()
            go_on()
            assert not heads.rests
    assert not timers.armed


def test_while_it_does_not_look_all_is_parsed(worker: Worker) -> None:
    worker.ask(worker.connect())
    assert worker.ask(worker.connect())
    worker.connections[0].heads.rests = True
    assert not worker.ask(worker.connect())
    assert worker.app.scopes == [worker.app.scopes[0]] * 3
