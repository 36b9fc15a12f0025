"""Planned replacements: the new worker is ready before the old one goes, and no request is lost."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.support.apps import TROUBLED
from tests.support.server import Server


@contextmanager
def asking_all_the_time(server: Server) -> Iterator[list[int]]:
    """Requests one after the other; yields the pids that have answered. One that fails fails the test, as
    pytest makes it of every exception in a thread."""
    answers: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(int(server.get().text))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        done.set()
        asking.join()


def assert_replaced(server: Server, reason: str) -> None:
    """Instance 0: its second worker was ready before the first drained, and nothing looked like a crash."""
    server.wait_logged(rf"instance=0 gen=1 pid=\d+ draining \({reason}")
    server.wait_logged(r"instance=0 gen=1 pid=\d+ exited with code 0 after draining")
    lines = "\n".join(server.logged("instance=0"))
    story = (
        rf"gen=2 .* started to replace pid=\d+ \({reason}\)[^$]*gen=2 .* ready after[^$]*gen=1 .* draining"
    )
    assert re.search(story, lines)
    assert not server.logged(r"\[(ERROR|WARNING|CRITICAL)\]")


def test_max_requests_with_jitter(server: Server) -> None:
    server.start("-w", "1", "--max-requests", "5", "--max-requests-jitter", "3", ready=1)
    with asking_all_the_time(server) as answers:
        assert_replaced(server, "max_requests")
    first = answers.count(answers[0])
    assert first >= 5  # and those that came before its replacement was ready


def test_max_lifetime(server: Server) -> None:
    env = {"MULTICORE_MAX_LIFETIME": "300ms", "MULTICORE_MAX_LIFETIME_JITTER": "0"}
    server.start("-w", "1", env=env, ready=1)
    with asking_all_the_time(server):
        assert_replaced(server, "lifetime")


def test_cron_restarts_one_after_the_other(server: Server) -> None:
    server.start("-w", "2", env={"MULTICORE_CRON_RESTART": "*/3 * * * * *"}, ready=2)
    server.wait_logged("gen=2 .* ready", 2)
    server.wait_logged(r"draining \(cron\)", 2)
    steps = re.findall(r"instance=(\d) gen=2 pid=\d+ (started|ready)", server.log)
    assert steps == [("0", "started"), ("0", "ready"), ("1", "started"), ("1", "ready")]


def test_a_term_from_outside_is_a_wish_for_a_replacement(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", ready=1)
    old = server.worker_of(0)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(server.get("/slow?0.5")))
    asking.start()
    server.wait_logged("SLOW")
    os.kill(old, signal.SIGTERM)
    server.wait_logged(r"instance=0 gen=1 .* draining \(manual: it got a signal\)")
    server.wait_logged("instance=0 gen=2 .* ready")
    asking.join()
    assert int(answers[0].text) == old
    server.wait_logged("instance=0 gen=1 .* exited with code 0 after draining")
    assert not server.logged(r"\[(ERROR|WARNING|CRITICAL)\]")


def test_a_replacement_that_cannot_boot_leaves_the_old_worker(server: Server) -> None:
    server.write("app.py", TROUBLED)
    env = {"MULTICORE_MAX_RESTARTS": "2", "MULTICORE_MAX_LIFETIME": "400ms"}
    server.start("-w", "1", env=env, ready=1)
    old = server.worker_of(0)
    server.write("app.py", TROUBLED + "\nraise RuntimeError('broken')")
    server.wait_logged("gen=2 .* the old worker keeps serving, next attempt in")
    server.wait_logged("gen=3 .* the old worker keeps serving, its replacement is given up")
    assert int(server.get().text) == old


@pytest.mark.parametrize("second", [None, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_shutdown_delay_answers_on_and_a_second_signal_ends_it(
    server: Server, second: signal.Signals | None
) -> None:
    delay = "30s" if second else "700ms"
    server.start("-w", "1", env={"MULTICORE_SHUTDOWN_DELAY": delay}, ready=1)
    asked = time.monotonic()
    server.signal(signal.SIGTERM)
    server.wait_logged(r"still answering for [\d.]+ s \(shutdown_delay\)")
    assert server.get().status_code == 200
    if second:
        server.signal(second)
    assert server.wait_exit(5) == 0
    assert second or time.monotonic() - asked > 0.7
