"""What is wrong with a real server is seen where people look: ps, show, monit and /status."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.support.apps import HELLO, PLAIN
from tests.support.command_line import Operator
from tests.support.server import Server
from tests.support.threads import running
from tests.support.waiting import PATIENCE, wait_for

FAILS = HELLO.replace('"status": 200', '"status": 500 if path == "/fail" else 200')
EACH = 0.01  # seconds between two requests


@contextmanager
def load(server: Server, path: str) -> Iterator[None]:
    """One request after the other."""
    enough = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            while not enough.wait(EACH):
                client.get(path)

    with running(ask, end=enough.set):
        yield


def codes(operator: Operator) -> dict[str, int]:
    workers = operator.json("show")["workers"]
    return {
        code: sum(it["requests"]["codes"][code] for it in workers) for code in ("2xx", "4xx", "5xx", "499")
    }


def test_requests_by_class_of_status_survive_their_worker(operator: Operator) -> None:
    server = operator.start(workers=1, app=FAILS)
    assert [server.get(path).status_code for path in ("/", "/fail", "/")] == [200, 500, 200]
    os.kill(server.worker_of(0), signal.SIGKILL)
    wait_for(lambda: operator.json("show")["workers"][0]["generation"] == 2, "another worker")
    server.wait_ready(2)
    assert server.get("/fail").status_code == 500
    assert codes(operator) == {"2xx": 2, "4xx": 0, "5xx": 2, "499": 0}


def test_errors_a_second_are_shown_with_the_reason(operator: Operator) -> None:
    server = operator.start(workers=1, app=FAILS)
    with load(server, "/fail"):
        heading, titles, row = operator.run("ps").stdout.splitlines()
        assert heading.endswith("  100.0% of the responses are 5xx")
        assert re.search(r" \d+(\.\d)? 100\.0% +0 +[01] ", row)
        shown = operator.run("show").stdout
        assert "health     red: 100.0% of the responses are 5xx\n" in shown
        assert re.search(r"errors +5xx/s [1-9][\d.]* 100\.0%, 499/s 0; \d+ and 0 in all\n", shown)
    assert "5xx/s  499/s" in titles


@pytest.mark.parametrize("options", [(), ("--env", "MULTICORE_SCHEDULING=shared")])
def test_a_blocked_worker_looks_blocked(operator: Operator, options: tuple[str, ...]) -> None:
    server = operator.start("--timeout", "10", *options, workers=2)
    assert operator.json("show")["timeout"] == 10
    stuck = threading.Thread(target=lambda: server.get("/block?9"))
    stuck.start()
    try:
        wait_for(lambda: re.search(r"instance (\d) blocked for ", operator.run("ps").stdout), "a blocked one")
        listed = operator.run("ps").stdout.splitlines()
        assert len([line for line in listed if "  blocked " in line]) == 1
        wait_for(lambda: "health     red: instance " in operator.run("show").stdout, "a red one")
        seen = operator.json("show")["workers"]
        assert max(it["blocked"] for it in seen) > 2
        assert max(it["loop_lag"] for it in seen) > 2
        assert min(it["blocked"] for it in seen) == 0
    finally:
        stuck.join()
    wait_for(lambda: "health     ok\n" in operator.run("show").stdout, "all well")


def test_monit_says_what_is_wrong(operator: Operator) -> None:
    pytest.importorskip("rich")
    server = operator.start(workers=2, app=FAILS)
    terminal = operator.terminal("monit", "--interval", "200ms", columns=140, lines=24)
    terminal.wait_shown("q quit")
    terminal.wait_shown(r"5xx 0  p50")
    stuck = threading.Thread(target=lambda: server.get("/block?2.5"))
    stuck.start()
    terminal.wait_shown(r"^instance \d blocked for [12]\.\d s")
    terminal.wait_shown(r"^ \d +\d+ +blocked [12]s ")
    stuck.join()
    with load(server, "/fail"):
        terminal.wait_shown(r"^[\d.]+% of the responses are 5xx")
        terminal.wait_shown(r"req/s  5xx \d+(\.\d)? [\d.]+%  p50")
    terminal.press("q")
    assert terminal.wait_exit() == 0


@pytest.mark.parametrize(("threads", "inline"), [("1", True), ("2", False)])
def test_where_requests_block_the_event_loop_by_design(
    operator: Operator, threads: str, inline: bool
) -> None:
    source = PLAIN.replace("async def app", "async def unused").replace("def wsgi", "def app")
    operator.start("--threads", threads, workers=1, app=source)
    assert [it["inline"] for it in operator.json("show")["workers"]] == [inline]
