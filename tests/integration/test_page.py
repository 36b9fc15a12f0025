"""The live page of real servers in a real browser."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.addresses import LOCAL
from tests.support.browser import DASH, OpenTab, Tab
from tests.support.deploying import deploy, hup
from tests.support.load import Load
from tests.support.monitor_process import Monitor
from tests.support.monitored_server import MonitoredServer
from tests.support.reports import event, slot

EVIL = "<img src=x onerror=alert`1`>"  # without parentheses, where a name would end
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
# Of the plots, from the first to the last.
LINES = (
    "requests",
    "5xx",
    "499",
    "p50",
    "p99",
    "queued p50",
    "queued p95",
    "CPU",
    "memory",
    "in progress",
    "backlog",
)
READABLE = 4.5  # WCAG 2, level AA


def open_page(open_tab: OpenTab, monitored: MonitoredServer, **options: Any) -> Tab:
    return open_tab(f"http://{LOCAL}:{monitored.port}/", **options)


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(DASH, "0"))


def loaded(monitored: MonitoredServer) -> Load:
    return Load((LOCAL, monitored.server.port))


def sideways(tab: Tab) -> int:
    """How many pixels the page is wider than the screen."""
    assert tab.page.viewport_size is not None  # not window.innerWidth: a phone's grows with what it shows
    return int(tab.page.evaluate("document.documentElement.scrollWidth")) - tab.page.viewport_size["width"]


def assert_readable(contrasts: dict[str, float]) -> None:
    assert {text: contrast for text, contrast in contrasts.items() if contrast < READABLE} == {}


def plotted(tab: Tab) -> list[int]:
    """How many points each line has, in the order of `LINES`."""
    script = "all => all.map(it => it.getAttribute('d') ?? '')"
    paths: list[str] = tab.page.eval_on_selector_all("#plots path[class^=line]", script)
    assert len(paths) == len(LINES)
    return [path.count("L") for path in paths]


def test_a_crash_is_seen_at_once(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "2", ready=2)
    tab = open_page(open_tab, monitored)
    tab.wait_workers(2)
    pids = [str(monitored.server.worker_of(instance)) for instance in (0, 1)]
    assert (tab.column("worker"), tab.column("pid"), tab.column("restarts")) == (["0", "1"], pids, ["0", "0"])

    os.kill(int(pids[1]), signal.SIGKILL)
    tab.wait_for(lambda: tab.column("pid")[1] not in (DASH, pids[1]), "a new pid", 2.0)
    assert tab.column("pid")[0] == pids[0]
    assert tab.column("restarts") == ["0", "1"]
    assert any(f"pid={pids[1]} was killed by SIGKILL" in text for text in tab.texts("#events li"))
    assert tab.text("#fact-restarts") == "signal 1"
    tab.wait_workers(2)
    tab.assert_clean()


def test_the_server_and_its_load(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "2", env={"MULTICORE_MAX_MEMORY_RESTART": "1G"}, ready=2)
    tab = open_page(open_tab, monitored)
    tab.wait_workers(2)
    assert (tab.text("#name"), tab.text("#condition")) == ("app:app", "● serving")
    assert tab.text("#fact-address") == f"http://{LOCAL}:{monitored.server.port}"
    assert tab.text("#fact-version") == monitored.status()["version"]
    assert tab.text("#fact-host") == socket.gethostname()

    def values() -> dict[str, str]:
        return dict(zip(LINES, tab.texts("figcaption b"), strict=True))

    with loaded(monitored):
        tab.wait_for(lambda: number(values()["requests"]) > 20, "more requests a second")
        tab.wait_for(lambda: all(number(text) > 0 for text in tab.column("requests/s")), "both serve")
        tab.wait_for(lambda: all(number(text) > 0 for text in tab.column("p99")), "their latencies")
        tab.wait_for(lambda: sum(number(text) for text in tab.column("CPU")) > 0, "CPU used")
        tab.wait_for(lambda: all(points >= 3 for points in plotted(tab)), "lines in all plots")
        assert all(number(text) >= 0 for text in tab.column("queue p95"))
        now = values()
        assert 0 < number(now["p50"]) <= number(now["p99"])
        assert 10 < number(now["memory"]) < 2000
        assert now["in progress"].isdecimal()
        assert now["backlog"].isdecimal()
        assert (now["5xx"], now["499"]) == ("0", "0")
    assert all("% of 1 GB" in text for text in tab.column("memory"))
    tab.wait_for(lambda: values()["requests"] == "0", "no requests any more")
    tab.assert_clean()


def test_html_is_text(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "1", "--name", EVIL, ready=1)
    deploy(monitored.server, 2, f"raise RuntimeError('{EVIL}')")
    hup(monitored.server, "reload rolled back")
    tab = open_page(open_tab, monitored)
    tab.wait_workers(1)
    assert tab.text("#name") == EVIL
    assert tab.page.title() == f"{EVIL} · multicore_server"
    assert any("reload rolled back: the log says why" in text for text in tab.texts("#events li"))
    assert tab.page.locator("img").count() == 0
    tab.assert_clean()


def test_whatever_is_html_is_text(tmp_path: Path, open_tab: OpenTab) -> None:
    """Also before the arbiter has said anything."""
    monitor = Monitor(tmp_path)
    try:
        tab = open_tab(f"http://{LOCAL}:{monitor.port}/")
        tab.wait_for(lambda: "has not published anything yet" in tab.text("#trouble"), "the reason")
        bad = {**slot(0), "state": EVIL, "wanted": EVIL, "restarts": {EVIL: 1}, "next_restart": 2000.0}
        names = {
            "name": EVIL,
            "version": EVIL,
            "addresses": [EVIL],
            "restarts": {EVIL: 1},
            "reloads": {EVIL: 1},
        }
        monitor.publish(**names, slots=[bad], events=[{**event(EVIL), "level": EVIL}])
        tab.wait_for(lambda: tab.page.locator("#trouble").is_hidden(), "an answer")
        shown = [*tab.texts("h1, #facts dd, #workers td"), *tab.texts("#events li")]
        assert "".join(shown).count(EVIL) == 9
        assert tab.page.locator("img").count() == 0
        hosts = {address.split("/")[2] for address in tab.asked}
        assert hosts == {f"{LOCAL}:{monitor.port}"}
        assert [
            text for text in tab.complaints if "503" not in text
        ] == []  # the console names refused requests
    finally:
        monitor.end()


def test_trouble_has_words(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    once = {"MULTICORE_MAX_RESTARTS": "0", "MULTICORE_MIN_UPTIME": "60s", "MULTICORE_SHUTDOWN_DELAY": "15s"}
    monitored.start("-w", "2", env=once, ready=2)
    tab = open_page(open_tab, monitored, color_scheme="dark")
    tab.wait_workers(2)
    os.kill(monitored.server.worker_of(0), signal.SIGKILL)
    tab.wait_for(lambda: tab.column("state") == ["✕ errored", "● ready"], "an errored worker")
    assert tab.text("#condition") == "✕ instance 0 errored: exited too often, no longer restarted"
    assert tab.page.title() == f"{tab.text('#condition')} · app:app · multicore_server"
    assert "instance=0" in tab.text("#fault")
    assert tab.column("CPU")[0] == tab.column("loop lag")[0] == tab.column("in progress")[0] == DASH
    monitored.server.signal(signal.SIGTERM)
    tab.wait_for(lambda: tab.text("#condition") == "▲ stopping", "the end")
    assert_readable(tab.contrasts())
    tab.assert_clean()


def test_on_a_phone_in_the_dark(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "2", "--name", "n" * 80, ready=2)
    os.kill(monitored.server.worker_of(0), signal.SIGKILL)
    tab = open_page(open_tab, monitored, color_scheme="dark", **PHONE)
    tab.wait_workers(2)
    assert sideways(tab) <= 0
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    # Cards to the eye, a table to those who have it read to them.
    assert tab.page.get_by_role("columnheader").count() == 15
    assert tab.page.get_by_role("row").count() == 3
    tab.assert_clean()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(monitored: MonitoredServer, open_tab: OpenTab, scheme: Any) -> None:
    monitored.start("-w", "2", ready=2)
    os.kill(monitored.server.worker_of(0), signal.SIGKILL)  # an event that is an error
    tab = open_page(open_tab, monitored, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    tab.wait_workers(2)
    found = tab.contrasts()
    assert {"● ready", "Workers", "p99", "requests/s", "error"} <= found.keys()
    assert_readable(found)
    assert sideways(tab) <= 0


def test_a_server_that_ends_and_comes_back(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "1", ready=1)
    tab = open_page(open_tab, monitored)
    tab.wait_workers(1)
    tab.assert_clean()
    before = tab.column("pid")
    monitored.server.end()
    tab.wait_for(lambda: tab.page.locator("#trouble").is_visible(), "trouble")
    assert tab.text("#condition") == "? unknown"
    assert re.match("Nothing new since .+: the server does not answer", tab.text("#trouble"))
    assert_readable(tab.contrasts())
    assert tab.column("pid") == before
    monitored.server.log_path.unlink()
    monitored.start("-w", "1", ready=1)
    tab.wait_for(lambda: tab.page.locator("#trouble").is_hidden(), "no trouble")
    tab.wait_for(lambda: tab.text("#condition") == "● serving", "its condition")
    tab.wait_for(lambda: tab.column("pid") == [str(monitored.server.worker_of(0))], "the new worker")
    assert {text for text in tab.complaints if "ERR_CONNECTION" not in text} == set()


def test_a_hidden_page_asks_nothing(monitored: MonitoredServer, open_tab: OpenTab) -> None:
    monitored.start("-w", "1", ready=1)
    tab = open_page(open_tab, monitored)
    tab.wait_workers(1)
    hide = "it => { Object.defineProperty(document, 'hidden', {value: it, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    tab.page.evaluate(hide, True)
    tab.page.wait_for_timeout(1500)  # one that was on its way
    asked = len(tab.asked)
    tab.page.wait_for_timeout(2500)
    assert len(tab.asked) == asked
    tab.page.evaluate(hide, False)
    tab.page.wait_for_timeout(1500)
    assert len(tab.asked) >= asked + 2
    tab.assert_clean()


def test_what_the_browser_is_told_to_refuse(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    for path in ("/", "/page.js", "/figures.js", "/page.css", "/icon.svg", "/icon-bad.svg"):
        answer: httpx.Response = monitored.get(path)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = monitored.get("/").text
    assert "style=" not in page
    assert "://" not in page
