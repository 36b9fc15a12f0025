"""What the live page says is wrong with a made-up server: in its heading, in the tab's title and icon."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from multicore_server.cli.health import Answered, Level, health
from multicore_server.ipc.scoreboard import Item
from tests.support.browser import DASH, Tab
from tests.support.monitor_process import Monitor
from tests.support.reports import slot, status, worker

OK, FAILED = Item.REQUESTS + 1, Item.REQUESTS + 4


def icon(tab: Tab) -> str | None:
    return tab.page.locator("#icon").get_attribute("href")


def wait_condition(tab: Tab, expected: str, its_icon: str) -> None:
    tab.wait_for(lambda: tab.text("#condition") == expected, expected)
    assert icon(tab) == its_icon
    words = "" if its_icon == "icon.svg" else f"{expected} · "
    assert tab.page.title() == f"{words}app:app · multicore_server"


MOODS = {Level.AMBER: "doubt", Level.RED: "bad"}
STATES: list[list[Any]] = [
    [],
    [worker(0), worker(1)],
    [worker(0), worker(1, state="backoff"), worker(2, state="starting"), worker(3, state="draining")],
    [worker(0), worker(1, state="stopped")],
    [worker(0, state="errored"), worker(1, state="backoff")],
    [worker(0), worker(1, state="errored"), worker(2, state="errored"), worker(3, state="backoff")],
    [worker(0, blocked=seconds) for seconds in (0.0, 0.9, 1.01, 15.0, 15.01, 31.3)],
    [worker(0, blocked=seconds, inline=True) for seconds in (1.5, 15.1)],
]
ANSWERED = [(0, 0), (19, 19), (20, 2), (20, 3), (300, 3), (301, 4), (100, 5), (100, 6), (1000, 1000)]


def test_the_page_says_what_monit_says(open_page: Callable[..., Tab]) -> None:
    """Of the same documents, in the same words."""
    cases = [(status(*workers), 0, 0) for workers in STATES]
    cases += [(status(*STATES[2], stopping=True), 0, 0), (status(*STATES[6], timeout=0), 0, 0)]
    cases += [(status(worker(0), worker(1, blocked=2.0)), *counts) for counts in ANSWERED]
    script = """async (cases) => {
        const { reasons } = await import("/health.js");
        return cases.map(([status, requests, errors]) => reasons(status, { requests, errors }));
    }"""
    said = open_page().page.evaluate(script, cases)
    for (document, requests, errors), reasons in zip(cases, said, strict=True):
        level, texts = health(document, Answered(10.0, requests, errors))
        assert [text for _, text in reasons] == texts
        assert next((mood for mood, _ in reasons), None) == MOODS.get(level)


def count(monitor: Monitor, *, ok: int = 0, failed: int = 0) -> None:
    row = monitor.scoreboard.row(0)
    row[OK] += ok
    row[FAILED] += failed


def test_workers_missing(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    wait_condition(tab, "● serving", "icon.svg")
    monitor.publish(slots=[slot(0), slot(1, "backoff", [])])
    wait_condition(tab, "▲ 1 of 2 workers missing (1 backoff)", "icon-doubt.svg")
    monitor.publish(slots=[slot(0), slot(1, "stopped", [])])
    wait_condition(tab, "● serving", "icon.svg")
    monitor.publish(slots=[slot(0, "starting"), slot(1, "errored", [])])
    wait_condition(tab, "✕ no worker is ready", "icon-bad.svg")
    assert tab.text("#others") == "instance 1 errored: exited too often, no longer restarted"
    tab.assert_clean()


def test_a_worker_that_stands_still(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    row = monitor.scoreboard.row(0)
    row[Item.BEAT_DUE] = due = time.monotonic() - 3
    tab = open_page()
    tab.wait_for(lambda: tab.text("#condition").startswith("▲ instance 0 blocked for "), "a blocked worker")
    shown = re.match(r"▲ blocked\nfor ([\d.]+) s", tab.column("state")[0])
    assert shown
    assert 3 <= float(shown[1]) <= time.monotonic() - due + 0.1  # it is rounded
    assert tab.column("state")[1] == "● ready"
    row[Item.INLINE] = 1
    wait_condition(tab, "● serving", "icon.svg")
    row[Item.INLINE], row[Item.BEAT_DUE] = 0, time.monotonic() - 20
    tab.wait_for(lambda: tab.text("#condition").startswith("✕ instance 0 blocked for 2"), "for long")
    assert icon(tab) == "icon-bad.svg"


def test_errors(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    tab.wait_workers(2)
    tab.wait_for(lambda: tab.column("5xx/s") == ["0", "0"], "two looks")
    count(monitor, ok=900, failed=30)
    share = "▲ 3.2% of the responses are 5xx"
    tab.wait_for(lambda: tab.text("#condition") == share, share)
    assert number(tab.column("5xx/s")[0]) > 0
    count(monitor, failed=100)
    tab.wait_for(lambda: tab.text("#condition").startswith("✕"), "more than 5 %")
    assert icon(tab) == "icon-bad.svg"
    tab.wait_for(lambda: tab.text("#condition") == "● serving", "nothing is said of errors that are over")


def test_few_errors_say_nothing(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    tab.wait_for(lambda: tab.column("5xx/s") == ["0", "0"], "two looks")
    count(monitor, ok=10, failed=9)
    tab.wait_for(lambda: number(tab.texts("figcaption b")[1]) > 0, "errors in the plot")
    assert tab.text("#condition") == "● serving"


def number(text: str) -> float:
    return float(text.replace(DASH, "0"))
