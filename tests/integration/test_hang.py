"""Workers that hang: they leave their stacks in the log and are replaced."""

from __future__ import annotations

import os
import signal
import threading

import httpx
import pytest

from tests.support.apps import TROUBLED, source
from tests.support.server import Server


def get_in_background(server: Server, path: str) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.get(path)))
    thread.start()
    return thread, answers


def test_a_worker_that_hangs_shows_where_and_is_replaced(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.write("gunicorn.conf.py", source("hooks"))
    server.start("-w", "1", "-t", "1", ready=1)
    victim = server.worker_of(0)
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/hang")
    server.wait_logged(rf"pid={victim} no heartbeat for 1\.\d s \(timeout\); aborting it")
    server.wait_logged(rf"pid={victim} exited with code 1 after .*; restarting at once")
    server.wait_ready(2)
    assert server.logged(r'File ".*/app.py", line \d+ in stuck')
    noted = (server.directory / "hooks.log").read_text().splitlines()
    for hook in ("worker_abort", "worker_exit"):
        assert f"{hook} {victim} 1 {victim}" in noted
    assert int(server.get().text) == server.worker_of(0)


def test_a_worker_that_ignores_the_abort_is_killed(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", "-t", "1", ready=1)
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/hang-deaf")
    server.wait_logged("did not exit in time; killing it")
    server.wait_logged("was killed by SIGKILL")
    server.wait_ready(2)


def test_a_draining_worker_with_a_long_request_does_not_hang(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", "-t", "1", ready=1)
    thread, answers = get_in_background(server, "/slow?2.5")
    server.wait_logged("SLOW")
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    thread.join()
    assert answers[0].status_code == 200
    server.wait_logged(r"gen=1 .* exited with code 0 after draining for [12]\.\d s")
    assert not server.logged("heartbeat")


def test_a_draining_worker_that_hangs_is_aborted_too(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", "-t", "1", ready=1)
    victim = server.worker_of(0)

    def end_it() -> None:
        server.wait_logged("^SLOW")
        os.kill(victim, signal.SIGTERM)

    ends = threading.Thread(target=end_it)
    ends.start()
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/slow-then-hang?0.5")
    ends.join()
    server.wait_logged(f"pid={victim} no heartbeat")
    server.wait_logged(rf"pid={victim} exited with code 1 after draining")
    assert server.logged(r'File ".*/app.py", line \d+ in stuck')
