"""What is said about an event loop that stands still, and how often."""

from __future__ import annotations

import math
import threading

import pytest

from multicore_server.ipc.request_table import InHand
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker import blocked as module
from multicore_server.worker.blocked import MOST_LINES, Blocked
from multicore_server.worker.standstill import Place
from multicore_server.worker.watch import patience

REPORT = Place("app/views.py", 31, "report", "time.sleep(2)")


class Watched:
    """The clock and the place are the test's to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.now = 1000.0
        self.place: Place | None = REPORT
        self.caplog = caplog
        self.row = Scoreboard(1).row(0)
        monkeypatch.setattr(module, "place_of", lambda _: self.place)
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.requests = [InHand("GET", "/report", "", 999.0), InHand("POST", "/a", "", 999.5)]
        self.blocked = Blocked(
            self.row, threading.get_ident(), 1.0, lambda: "instance=0", lambda _: self.requests
        )

    def stands(self, seconds: float) -> list[str]:
        """The loop stands still for so long, looked at all the time; what is logged."""
        self.caplog.clear()
        for tenth in range(int(seconds * 10) + 1):
            self.blocked.look(tenth / 10)
        self.now += seconds
        self.blocked.over(seconds, 0.0)
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Watched:
    return Watched(monkeypatch, caplog)


def test_one_line_while_it_stands_and_one_when_it_is_over(watched: Watched) -> None:
    where = "by app/views.py:31 in report (time.sleep(2)); GET /report, POST /a"
    assert watched.stands(1.8) == [
        f"instance=0 the event loop has been blocked for 1.0 s {where}",
        f"instance=0 the event loop was blocked for 1.8 s {where}; it runs again",
    ]
    assert (watched.row[Item.BLOCKED], watched.row[Item.BLOCKED_SECONDS]) == (1, 1.8)


def test_less_than_the_warning_is_not_worth_a_line(watched: Watched) -> None:
    assert watched.stands(0.9) == []
    assert watched.row[Item.BLOCKED] == 0


def test_the_same_line_is_said_once_a_minute_with_a_count(watched: Watched) -> None:
    assert len(watched.stands(2)) == 2
    assert [watched.stands(2) for _ in range(3)] == [[], [], []]
    watched.place = Place("app/views.py", 99, "other", "")
    assert len(watched.stands(2)) == 2, "another line"
    watched.place, watched.now = REPORT, watched.now + 60
    assert "POST /a, 3 times more since the last warning about it" in watched.stands(2)[0]
    assert watched.row[Item.BLOCKED] == 6


def test_what_is_known_is_said(watched: Watched) -> None:
    watched.place, watched.requests = None, []
    first, last = watched.stands(3)
    assert first == "instance=0 the event loop has been blocked for 1.0 s"
    assert last == "instance=0 the event loop was blocked for 3.0 s; it runs again"


@pytest.mark.parametrize("used", [4.9, 1.3])  # alone on a CPU, and among others
def test_a_block_that_nobody_saw_used_the_cpu_or_was_none(watched: Watched, used: float) -> None:
    """What holds the GIL stops the watcher, too. A process that is stopped does nothing at all."""
    watched.blocked.over(60.0, used=0.01)
    assert (watched.row[Item.BLOCKED], watched.caplog.records) == (0, [])
    for _ in range(2):
        watched.blocked.over(5.0, used=used)
    assert (watched.row[Item.BLOCKED], watched.row[Item.BLOCKED_SECONDS]) == (2, 10)
    (record,) = watched.caplog.records
    text = "the event loop was blocked for 5.0 s, by C code that holds the GIL: its line is not known"
    assert record.getMessage() == f"instance=0 {text}"


def test_not_every_line_of_a_large_app_is_remembered(watched: Watched) -> None:
    for line in range(MOST_LINES + 10):
        watched.place = Place("a.py", line, "f", "")
        watched.stands(1)
    assert len(watched.blocked._said) <= MOST_LINES


def test_from_when_a_block_is_worth_a_warning() -> None:
    assert patience(1.0, 30, inline=False) == 1.0
    assert patience(1.0, 30, inline=True) == 15
    assert patience(20.0, 30, inline=True) == 20
    assert patience(1.0, 0, inline=True) == math.inf
    assert patience(None, 30, inline=True) is None
