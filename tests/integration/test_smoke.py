"""The main job, end to end: what every supported interpreter runs."""

from __future__ import annotations

import signal

import pytest

from tests.support.server import Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.smoke


def test_serves_restarts_reloads_and_ends(server: Server) -> None:
    server.start("-w", "2", ready=2)
    assert int(server.get().text) in server.workers()

    victim = server.worker_of(1)
    import os

    os.kill(victim, signal.SIGKILL)
    server.wait_logged(r"instance=1 gen=1 pid=\d+ was killed by SIGKILL.*restarting at once")
    server.wait_ready(3)

    server.signal(signal.SIGHUP)
    server.wait_logged("reload done: 2 workers replaced")
    wait_for(lambda: len(server.workers()) == 2, "two workers")
    assert int(server.get().text) in server.workers()

    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
