"""The thread that looks when a beat is overdue."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from multicore_server.ipc.heartbeat import LATE
from multicore_server.worker import watcher as module
from multicore_server.worker.watcher import Watcher


class Watched:
    def __init__(self) -> None:
        self.looks: list[float] = []
        self.fails = 0
        self.watcher = Watcher(self._look)
        self.watcher.start()

    def _look(self, seconds: float) -> None:
        self.looks.append(seconds)
        if self.fails:
            self.fails -= 1
            raise MemoryError

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def beats(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.watcher.expect(time.monotonic() + 0.05)
            time.sleep(0.02)


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.watcher.end()


def test_it_looks_while_a_beat_is_overdue_and_no_longer(watched: Watched) -> None:
    watched.watcher.expect(time.monotonic() - LATE + 0.05)
    watched.until(lambda: len(watched.looks) > 2)
    assert watched.looks == sorted(watched.looks)
    assert watched.looks[0] >= LATE
    watched.beats(0.1)
    seen = len(watched.looks)
    watched.beats(0.3)
    assert len(watched.looks) == seen


def test_while_the_worker_rests_it_sleeps(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.watcher.expect(None)
    watched.until(lambda: watched.watcher._sleeps)
    watched.beats(0.2)
    assert watched.looks == []
    watched.watcher.expect(time.monotonic() - LATE + 0.02)
    watched.until(lambda: bool(watched.looks))


def test_a_machine_that_stood_still_is_no_loop_that_does(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread itself is as late: the loop gets the time to beat."""
    real = time.monotonic
    jump = 0.0
    monkeypatch.setattr("time.monotonic", lambda: real() + jump)
    watched.watcher.expect(real() + 0.05)
    jump = 60.0
    watched.until(lambda: not watched.watcher._sleeps)
    time.sleep(0.1)
    watched.watcher.expect(None)
    assert watched.looks == []


def test_what_fails_in_a_look_does_not_end_it(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.fails = 1
    watched.watcher.expect(time.monotonic() - LATE + 0.02)
    watched.until(lambda: len(watched.looks) == 1)
    with caplog.at_level(logging.WARNING):
        watched.until(lambda: bool(caplog.records))
    watched.until(lambda: "and continues" in caplog.text)


def test_where_there_can_be_no_more_threads_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        module.Watcher(print).start()
