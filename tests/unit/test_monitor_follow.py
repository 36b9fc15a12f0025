"""Following the events: none missed while they are there, none twice, whatever else the report says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from multicore_server.ipc.report import EventReport
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.monitor import follow
from multicore_server.monitor.follow import Follower, new_since, server_sent
from multicore_server.monitor.view import ReportView
from tests.support.reports import event, report


def events(*numbers: int) -> list[EventReport]:
    return [event(f"event {number}", float(number)) for number in numbers]


class Arbiter:
    def __init__(self) -> None:
        self.shared_report = SharedReport(2**16)
        self.view = ReportView(self.shared_report)

    def publish(self, *numbers: int, **changes: Any) -> None:
        text = json.dumps(report(events=events(*numbers), **changes))
        self.shared_report.publish(text.encode())


@pytest.mark.parametrize(
    ("seen", "now", "new"),
    [
        ((), (), ()),
        ((), (1, 2), (1, 2)),
        ((1, 2), (1, 2), ()),
        ((1, 2), (1, 2, 3), (3,)),
        ((1, 2), (2, 3, 4), (3, 4)),
        ((1, 2), (7, 8), (7, 8)),  # more than the report holds
    ],
)
def test_what_is_new(seen: tuple[int, ...], now: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert new_since(events(*seen), events(*now)) == events(*new)


def test_only_events_are_news() -> None:
    arbiter = Arbiter()
    arbiter.publish(1)
    follower = Follower(arbiter.view, 0)
    assert follower.new_events() == []
    arbiter.publish(1, stopping=True)
    assert follower.new_events() == []
    arbiter.publish(1, 2)
    assert follower.new_events() == events(2)
    assert follower.new_events() == []


def test_before_the_first_bulletin() -> None:
    arbiter = Arbiter()
    follower = Follower(arbiter.view, 10)
    assert follower.new_events() == []
    arbiter.publish(1, 2)
    assert follower.new_events() == events(1, 2)


def stream(follower: Follower, parts: int) -> bytes:
    async def read() -> bytes:
        iterator = follower.stream()
        return b"".join([await anext(iterator) for _ in range(parts)])

    return asyncio.run(read())


@pytest.mark.parametrize(("last", "shown"), [(1, (3,)), (2, (2, 3)), (3, (1, 2, 3)), (100, (1, 2, 3))])
def test_the_stream_starts_with_the_last_ones(last: int, shown: tuple[int, ...]) -> None:
    arbiter = Arbiter()
    arbiter.publish(1, 2, 3)
    assert stream(Follower(arbiter.view, last), 2).endswith(
        b"\n\n" + b"".join(map(server_sent, events(*shown)))
    )


def test_while_nothing_happens_it_says_that_it_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "KEEP_ALIVE", 0.05)
    monkeypatch.setattr(follow, "POLL", 0.01)
    arbiter = Arbiter()
    arbiter.publish(1)
    text = stream(Follower(arbiter.view, 0), 3)
    assert text.count(b": still here\n\n") == 2


def test_an_event_is_one_line_whatever_it_says() -> None:
    text = server_sent(event("one\r\ntwo\n\ndata: three\u2028"))
    assert (text.count(b"\n"), text.count(b"\r"), text[:6]) == (2, 0, b"data: ")
    assert json.loads(text[6:])["text"] == "one\r\ntwo\n\ndata: three\u2028"


# --- the view ---


def test_a_bulletin_is_parsed_once() -> None:
    arbiter = Arbiter()
    assert arbiter.view.report is None
    arbiter.publish(1)
    found = arbiter.view.report
    assert found is not None
    assert arbiter.view.report is found
    arbiter.publish(2)
    assert arbiter.view.report is not found


def test_one_whose_writer_was_stopped_in_the_middle_leaves_the_last_one() -> None:
    arbiter = Arbiter()
    arbiter.publish(1)
    before = arbiter.view.report
    arbiter.publish(1, 2)
    arbiter.shared_report._memory[40:50] = b"~" * 10
    assert arbiter.view.report is before
    arbiter.publish(1, 2, 3)
    found = arbiter.view.report
    assert found is not None
    assert found["events"] == events(1, 2, 3)


def test_one_that_is_overwritten_leaves_the_last_one() -> None:
    arbiter = Arbiter()
    arbiter.publish(1)
    before = arbiter.view.report
    arbiter.shared_report.publish(b"no JSON")
    assert arbiter.view.report is before
    arbiter.shared_report._memory[:8] = b"\xff" * 8  # the number of changes
    arbiter.publish(1, 2)
    found = arbiter.view.report
    assert found is not None
    assert found["events"] == events(1, 2)
