"""The live page of a real monitor whose server is made up: states that are rare or take long to come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.monitor.samples import COLUMNS, EVERY, KEPT
from tests import screenshots
from tests.support.browser import OpenTab, Tab
from tests.support.monitor_process import Monitor
from tests.support.reports import event, process, slot

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


# --- the plots


def made_up(now: float, numbers: range) -> list[list[Any]]:
    made = {
        "requests": 40.0,
        "5xx": 0,
        "499": 0,
        "p50": 0.01,
        "p99": 0.1,
        "cpu": 50.0,
        "cpu_by_worker": [40, 10],
        "memory": 2**27,
    }
    others = {"queue_p50": None, "queue_p95": 0.02, "in_progress": 2, "backlog": 1, "ready": 2}
    return [
        [{"at": now - number * EVERY, **made, **others}[name] for name in COLUMNS]
        for number in reversed(numbers)
    ]


def serve_samples(
    tab: Tab, samples: Callable[[float], Any], marks: Callable[[float], Any], times: int = 1
) -> None:
    """Whatever the monitor has: the page gets these samples and marks, made of the present moment."""

    def answer(route: Any) -> None:
        now = time.monotonic()
        head = {"every": EVERY, "kept": KEPT * EVERY, "now": now, "time": time.time(), "columns": COLUMNS}
        body = json.dumps({**head, "samples": samples(now), "marks": marks(now)})
        route.fulfill(body=body, content_type="application/json")

    tab.page.route("**/samples*", answer, times=times)
    tab.page.reload()


def path(tab: Tab) -> str:
    return tab.page.locator("path.line-0").first.get_attribute("d") or ""


def test_the_plots_are_full_at_once(open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    serve_samples(tab, lambda now: made_up(now, range(KEPT)), lambda _: [])
    tab.wait_for(lambda: path(tab).count("L") >= KEPT - 1, "a full plot")
    assert path(tab).count("M") == 1

    def full_sparks() -> set[str]:
        """They are in the workers' rows, which come with the status: it may come after the samples."""
        found = {it.get_attribute("d") or "" for it in tab.page.locator(".spark path").all()}
        return {spark for spark in found if spark.count("L") >= KEPT - 1}

    tab.wait_for(lambda: len(full_sparks()) > 1, "full plots in the workers' rows, which differ")
    assert tab.texts("#plots .scale")[:2] == ["max 50", "max 1"]
    assert not tab.page.locator("#legend").is_visible()
    tab.assert_clean()


def test_a_monitor_that_was_replaced_leaves_a_gap(open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    serve_samples(tab, lambda now: made_up(now, range(100)) + made_up(now + 400, range(100)), lambda _: [])
    tab.wait_for(lambda: path(tab).count("M") == 2, "two lines")


def test_reloads_and_crashes_are_marked(open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    serve_samples(
        tab,
        lambda now: made_up(now, range(KEPT)),
        lambda now: [
            [now - 300, "reload", "info", "reload done"],
            [now - 60, "exited", "error", "<b>instance=1</b> was killed by SIGKILL"],
            [now - 10, "reload", "error", "reload rolled back"],
        ],
    )
    first = tab.page.locator("#plots svg").first
    tab.wait_for(lambda: first.locator(".mark-reload, .mark-fault").count() == 3, "three marks")
    assert first.locator(".mark-reload title").inner_html().endswith(" reload done")
    assert "<b>instance=1</b> was killed by SIGKILL" in (first.locator("title").nth(1).text_content() or "")
    assert first.get_attribute("aria-label") == "Requests/s: now 40; highest 40; reloads: 1, faults: 2"
    x = float((first.locator(".mark-reload path").first.get_attribute("d") or "")[1:].split()[0])
    assert 145 < x < 151  # in the middle of 300
    assert tab.page.locator("#legend").is_visible()
    tab.assert_clean()


def test_a_mark_that_is_told_again_is_one(open_page: Callable[..., Tab]) -> None:
    tab = open_page()
    serve_samples(
        tab, lambda now: made_up(now, range(1)), lambda now: [[now - 60, "boot", "error", "broken"]], 3
    )
    tab.wait_for(lambda: path(tab).count(" ") >= 6, "three answers")  # two numbers a point, one of them twice
    assert tab.page.locator("#plots svg").first.locator(".mark-fault").count() == 1


def test_new_samples_are_asked_for_and_no_others(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    tab = open_page()

    def asked() -> list[float]:
        tab.page.evaluate("1")  # what was asked meanwhile is now known
        return [float(it.rpartition("=")[2]) for it in tab.asked if "/samples?after=" in it]

    tab.wait_for(lambda: len(asked()) >= 4, "some questions")
    assert asked()[0] == 0
    assert asked()[1:] == sorted(asked()[1:])
    assert asked()[-1] > time.monotonic() - 10
    tab.wait_for(lambda: path(tab).count("L") >= 3, "they are one line")
    assert path(tab).count("M") == 1


# --- what happened


def replacement(first: int, instance: int, generation: int, at: float) -> list[Any]:
    """The events of one that ends well, by their ids from this one on."""
    old = {"instance": instance, "generation": generation, "pid": 100 + generation}
    new = {"instance": instance, "generation": generation + 1, "pid": 101 + generation}
    return [
        event("started", at, id=first, kind="started", **new),
        event("ready after 0.40 s", at + 0.4, id=first + 1, kind="ready", **new),
        event("draining (reload)", at + 0.4, id=first + 2, kind="draining", reason="reload", **old),
        event("drained in 1.1 s", at + 1.5, id=first + 3, kind="gone", **old),
    ]


def lines(tab: Tab) -> list[str]:
    return [text.replace("\n", " ") for text in tab.texts("#events li > p, #events summary")]


def test_a_replacement_is_one_line(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    now = time.time()
    interleaved = [
        it for both in zip(replacement(1, 0, 1, now), replacement(11, 1, 5, now), strict=True) for it in both
    ]
    crash = event("was killed", now + 3, id=20, kind="exited", level="error", generation=2, pid=102)
    again = [
        event("started", now + 3, id=21, kind="started", generation=3, pid=103),
        event("ready after 0.50 s", now + 3.5, id=22, kind="ready", generation=3, pid=103),
        event("draining (scale)", now + 9, id=23, kind="draining", generation=3, pid=103, reason="scale"),
        event("drained in 1.0 s", now + 10, id=24, kind="gone", generation=3, pid=103),
    ]
    monitor.publish(events=[*interleaved, crash, *again])
    tab = open_page()
    tab.wait_workers(2)
    assert lines(tab) == [
        "instance=0 gen=3 pid=103 drained and exited, in 1.0 s",
        "instance=0 gen=3 pid=103 started, ready after 0.50 s",
        "instance=0 gen=2 pid=102 was killed",
        "instance=1 gen=5 pid=105 replaced by gen=6 pid=106 (reload), in 1.5 s",
        "instance=0 gen=1 pid=101 replaced by gen=2 pid=102 (reload), in 1.5 s",
    ]
    tab.page.locator("summary").last.click()
    assert tab.page.locator("details[open] p").count() == 4
    monitor.publish(
        events=[*interleaved, crash, *again, event("reload done", id=30, kind="reload", instance=None)]
    )
    tab.wait_for(lambda: len(lines(tab)) == 6, "a new line")
    assert tab.page.locator("details[open]").count() == 1  # it stays as the reader has left it


def test_replacements_that_overlap_are_a_line_each(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    *first, late = replacement(1, 0, 1, time.time())
    started, ready, *drained = replacement(4, 0, 2, time.time() + 1)
    late["id"] = 6  # the first one drains until the third one is ready
    drained = [{**it, "id": it["id"] + 1} for it in drained]
    monitor.publish(events=[*first, started, ready, late, *drained])
    tab = open_page()
    tab.wait_workers(2)
    assert [line.partition(", ")[0] for line in lines(tab)] == [
        "instance=0 gen=2 pid=102 replaced by gen=3 pid=103 (reload)",
        "instance=0 gen=1 pid=101 replaced by gen=2 pid=102 (reload)",
    ]


def test_an_event_of_another_day_has_its_date(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    monitor.publish(events=[event("ready", 1_000_000_000.0, id=1), event("ready", time.time(), id=2)])
    tab = open_page(locale="en-GB", timezone_id="UTC")
    tab.wait_workers(2)
    today, other = tab.texts("#events time")
    assert "2001" in other
    assert len(today) == len("12:34:56")


def test_a_phone_shows_first_what_is_wrong(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    many = [event(f"was killed, {'for a long reason ' * 9}", time.time(), id=n, kind="exited", level="error")
            for n in range(1, 60)]  # fmt: skip
    slots = [slot(0), slot(1), slot(2, "errored", []), slot(3, "starting", [process(3, state="starting")])]
    monitor.publish(events=many, slots=slots, configured=4)
    tab = open_page(**PHONE)
    tab.wait_for(lambda: len(tab.column("state")) == 4, "the workers")

    def top(selector: str) -> float:
        box = tab.page.locator(selector).bounding_box()
        assert box is not None
        return box["y"]

    assert top("#condition") < top("#fault") < 200
    assert top("#fault") < top("#facts") < top("#plots") < top("#worker-2")
    assert top("#worker-2") < top("#worker-3") < top("#worker-0") < top("#events")
    height = tab.page.locator("#events").bounding_box()
    assert height is not None
    assert height["height"] < 2500
    shown = tab.page.locator("#events li:visible").count()
    tab.page.locator("#more").click()
    assert shown < tab.page.locator("#events li:visible").count() == 50


def test_of_many_workers_a_phone_shows_some(monitor: Monitor, open_page: Callable[..., Tab]) -> None:
    slots = [slot(number) for number in range(20)]
    slots[17] = slot(17, "errored", [])
    monitor.publish(slots=slots, configured=20)
    tab, wide = open_page(**PHONE), open_page()
    for each in (tab, wide):
        each.wait_workers(19)
    rows = tab.page.locator("#workers tr:visible")
    assert rows.locator("th").all_inner_texts() == ["0", "1", "2", "3", "17"]
    tab.page.locator("#all-workers").click()
    assert rows.count() == wide.page.locator("#workers tr:visible").count() == 20
    assert not tab.page.locator("#all-workers").is_visible()
    assert not wide.page.locator("#all-workers").is_visible()


# --- what is in hand: the server's owner alone is told


def test_requests_in_progress_are_shown_to_those_who_are_told(
    monitor: Monitor, open_page: Callable[..., Tab]
) -> None:
    tab = open_page()
    tab.wait_workers(2)
    assert not tab.page.locator("#in-progress").is_visible()

    def as_owner(route: Any) -> None:
        told = route.fetch().json()
        for each in told["workers"]:
            each["running"] = []
        told["workers"][1]["running"] = [
            {"method": "GET", "path": "/a<b>", "client": "10.0.0.1", "seconds": 0.5},
            {"method": "POST", "path": "/old", "client": "10.0.0.2", "seconds": 75.0},
        ]
        route.fulfill(body=json.dumps(told), content_type="application/json")

    tab.page.route("**/status", as_owner)
    tab.wait_for(lambda: tab.page.locator("#in-progress").is_visible(), "the requests")
    assert tab.texts("#requests p") == ["POST /old 10.0.0.2", "GET /a<b> 10.0.0.1"]


def test_pictures_are_taken(open_tab: OpenTab, tmp_path: Path) -> None:
    """By the script, of the state that comes about fastest."""
    screenshots.STATES["empty"](screenshots.Studio(open_tab, tmp_path, tmp_path))
    taken = {it.name: it.read_bytes()[:4] for it in tmp_path.glob("*.png")}
    assert taken == dict.fromkeys(("empty.png", "empty-dark.png", "empty-phone.png"), b"\x89PNG")
