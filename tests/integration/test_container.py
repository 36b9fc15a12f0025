"""PID 1 of a container: the arbiter reaps strangers and handles TERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.apps import TROUBLED
from tests.support.processes import workers_of
from tests.support.server import Server
from tests.support.waiting import wait_for

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_as_pid_1_it_reaps_strangers_and_obeys_term(server: Server) -> None:
    if not may_unshare():
        assert not (os.environ.get("CI") and os.geteuid() == 0), "CI as root must be able to run this"
        pytest.skip("may not unshare the PID namespace")
    server.write("app.py", TROUBLED)
    server.start(
        "-w", "2", "--log-level", "debug", ready=2,
        command=[*UNSHARE, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"],
    )  # fmt: skip
    assert server.logged(r"Listening at: .* \(1\)")
    (arbiter,) = psutil.Process(server.pid).children()
    server.get("/stranger")
    server.wait_logged(r"reaped a child that is not a worker \(pid=\d+\)")
    wait_for(lambda: len(workers_of(arbiter.pid)) == 2, "no zombies")
    arbiter.send_signal(signal.SIGTERM)
    assert server.wait_exit(2.0) == 0
    assert server.logged("Shutting down: Master")
