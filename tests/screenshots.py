"""Pictures of the live page in its states, of real servers, to be looked at.

    python -m tests.screenshots DIRECTORY [STATE ...]

Needs chromium, as the tests of the page. Each state is a function of `STATES`; it makes STATE.png (of a
laptop), STATE-dark.png and STATE-phone.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from multicore_server.ipc.scoreboard import CODES, ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.monitor.samples import COLUMNS, EVERY, KEPT
from tests.support.addresses import LOCAL
from tests.support.apps import ASK
from tests.support.browser import OpenTab, Tab, launched, tabs
from tests.support.deploying import hup
from tests.support.monitor_process import Monitor
from tests.support.monitored_server import MonitoredServer
from tests.support.reports import event, slot
from tests.support.server import Server

LAPTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "device_scale_factor": 2}
LOOKS: dict[str, dict[str, Any]] = {
    "": LAPTOP,
    "-dark": {**LAPTOP, "color_scheme": "dark"},
    "-phone": PHONE,
}
SOME_TIME = 8.0  # seconds of load, until rates are shown
NEVER_AGAIN = {"MULTICORE_MAX_RESTARTS": "0", "MULTICORE_MIN_UPTIME": "60s"}


class Studio:
    """Takes pictures of a page, in each of the `LOOKS`, into a directory."""

    def __init__(self, open_tab: OpenTab, pictures: Path, directory: Path) -> None:
        self._open_tab = open_tab
        self._pictures = pictures
        self.directory = directory

    def take(self, name: str, port: int, prepare: Callable[[Tab], object] = lambda _: None) -> None:
        opened = {look: self._open_tab(f"http://{LOCAL}:{port}/", **how) for look, how in LOOKS.items()}
        for tab in opened.values():
            prepare(tab)
        next(iter(opened.values())).page.wait_for_timeout(3000)  # rates take two looks
        for look, tab in opened.items():
            path = self._pictures / f"{name}{look}.png"
            tab.page.screenshot(path=path, full_page=True)
            print(f"{path}: {tab.page.title()}")

    @contextlib.contextmanager
    def server(self, *options: str, **env: str) -> Iterator[MonitoredServer]:
        directory = Path(tempfile.mkdtemp(dir=self.directory))
        monitored = MonitoredServer(Server(directory, ASK))
        try:
            yield monitored.start("-w", "4", *options, env=env, ready=4)
        finally:
            monitored.server.end()
            monitored.close()


@contextlib.contextmanager
def load(monitored: MonitoredServer, *expressions: str) -> Iterator[None]:
    """Two clients that ask for the values of these expressions in turn, whatever the status."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for expression in expressions:
                with contextlib.suppress(httpx.HTTPError):
                    monitored.server.get(f"/?{quote(expression)}")

    clients = [threading.Thread(target=work) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        time.sleep(SOME_TIME)
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def healthy(studio: Studio) -> None:
    with studio.server() as monitored, load(monitored, "1", "time.sleep(0.004)"):
        studio.take("healthy", monitored.port)


def full(studio: Studio) -> None:
    """Ten minutes of made-up samples, of a real server."""

    def answer(route: Any) -> None:
        route.fulfill(body=json.dumps(ten_minutes()), content_type="application/json")

    def prepare(tab: Tab) -> None:
        tab.page.route("**/samples*", answer)
        tab.page.reload()

    with studio.server() as monitored:
        studio.take("full", monitored.port, prepare)


def ten_minutes() -> dict[str, Any]:
    now = time.monotonic()
    samples = [_made_up(now - (KEPT - number) * EVERY, number) for number in range(KEPT)]
    marks = [
        [now - 400, "reload", "info", "reload done: 4 workers replaced in 3.1 s"],
        [now - 170, "exited", "error", "instance=2 gen=1 pid=4711 was killed by SIGSEGV; restarting at once"],
    ]
    head = {"every": EVERY, "kept": KEPT * EVERY, "now": now, "time": time.time(), "columns": COLUMNS}
    return {**head, "samples": samples, "marks": marks}


def _made_up(at: float, number: int) -> list[Any]:
    wave = 1 + 0.4 * math.sin(number / 25) + 0.1 * math.sin(number * 1.7)
    requests, errors = 420 * wave, 8.0 if 205 < number < 225 else 0.0
    made: dict[str, Any] = {
        "at": at, "requests": requests, "5xx": errors, "499": 0.4 * wave, "p50": 0.012 * wave,
        "p99": 0.11 * wave, "cpu": 180 * wave, "memory": (300 + number / 10) * 2**20,
        "in_progress": round(6 * wave), "backlog": 3 if 205 < number < 215 else 0, "ready": 4,
        "cpu_by_worker": [round(share * 180 * wave) for share in (0.4, 0.3, 0.2, 0.1)],
        "queue_p50": 0.0008 * wave, "queue_p95": 0.006 * wave,
    }  # fmt: skip
    return [made.get(name) for name in COLUMNS]


def errored(studio: Studio) -> None:
    with studio.server(**NEVER_AGAIN) as monitored, load(monitored, "1"):
        os.kill(monitored.server.worker_of(1), signal.SIGKILL)
        studio.take("errored", monitored.port)


def errors(studio: Studio) -> None:
    with studio.server() as monitored, load(monitored, "1", "1", "1", "1 / 0"):
        studio.take("errors", monitored.port)


def blocked(studio: Studio) -> None:
    with studio.server() as monitored:
        client = threading.Thread(target=monitored.server.get, args=(f"/?{quote('time.sleep(12)')}",))
        client.start()
        time.sleep(2)
        studio.take("blocked", monitored.port)
        client.join()


def reloaded(studio: Studio) -> None:
    """After a reload, a crash and another reload, while there is load."""
    with studio.server() as monitored, load(monitored, "1"):
        hup(monitored.server)
        time.sleep(5)
        os.kill(monitored.server.worker_of(2), signal.SIGKILL)
        time.sleep(5)
        hup(monitored.server)
        studio.take("reloaded", monitored.port)


def empty(studio: Studio) -> None:
    """Before the arbiter has said anything."""
    monitor = Monitor(studio.directory)
    try:
        studio.take("empty", monitor.port)
    finally:
        monitor.end()


def crowded(studio: Studio) -> None:
    """A made-up server of twelve workers with much to do and much to say, each cell at its widest."""
    monitor = Monitor(studio.directory)
    slots: list[Any] = [{**slot(number), "restarts": {"exit": 1234}} for number in range(12)]
    slots[3]["wanted"] = "max_requests"
    slots[5] = slot(5, "errored", [])
    slots[7] = {**slot(7, "backoff", []), "next_restart": time.time() + 14}
    deaths = [
        event("was killed by SIGSEGV; restarting in 1.2 s", at, id=number, kind="exited", level="error")
        for number, at in enumerate((time.time() - 90_000, time.time() - 60), 1)
    ]
    addresses = ["http://127.0.0.1:8000", "unix:/run/app/with-a-long-name/app.sock"]
    named = {"name": "project.asgi:application", "addresses": addresses, "configured": 12}
    memory = {"settings": {"memory_metric": "uss"}, "worker_memory_limit": 300 * 2**20}
    monitor.publish(slots=slots, events=deaths, **named, **memory)
    ended = threading.Event()
    work = threading.Thread(target=_be_busy, args=(monitor.scoreboard, ended))
    work.start()
    try:
        studio.take("crowded", monitor.port)
    finally:
        ended.set()
        work.join()
        monitor.end()


def _be_busy(scoreboard: Scoreboard, ended: threading.Event) -> None:
    grows = {
        Item.REQUESTS + CODES.index("2xx"): 12345, Item.REQUESTS + CODES.index("5xx"): 130,
        Item.REQUESTS + CODES.index("499"): 11, Item.DURATIONS + 9: 1000, Item.QUEUE + 8: 300,
        Item.CPU_SECONDS: 1,
    }  # fmt: skip
    present = {
        Item.RESIDENT_MEMORY: 290 * 2**20, Item.UNIQUE_MEMORY: 280 * 2**20, Item.IN_HAND: 120,
        Item.CONNECTIONS: 11234, Item.LOOP_LAG: 0.123,
    }  # fmt: skip
    while not ended.wait(1.0):
        for number in range(0, 12 * ROWS_PER_SLOT, ROWS_PER_SLOT):
            row = scoreboard.row(number)
            for item, amount in grows.items():
                row[item] += amount
            for item, value in present.items():
                row[item] = value


def gone(studio: Studio) -> None:
    """The server ends while somebody looks."""
    with studio.server() as monitored:
        studio.take("gone", monitored.port, lambda tab: _end(tab, monitored))


def _end(tab: Tab, monitored: MonitoredServer) -> None:
    if tab.page.viewport_size == PHONE["viewport"]:  # the last one that was opened
        tab.wait_workers(4)
        monitored.server.end()


STATES = {it.__name__: it for it in (healthy, full, errored, errors, blocked, reloaded, crowded, empty, gone)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("states", nargs="*", metavar="STATE", help=f"of {', '.join(STATES)}; all by default")
    chosen = parser.parse_args()
    if unknown := set(chosen.states) - STATES.keys():
        parser.error(f"there is no state {min(unknown)}")
    chosen.directory.mkdir(parents=True, exist_ok=True)
    for name in chosen.states or STATES:
        with tempfile.TemporaryDirectory() as own, launched() as browser, tabs(browser) as open_tab:
            STATES[name](Studio(open_tab, chosen.directory, Path(own)))


if __name__ == "__main__":
    main()
