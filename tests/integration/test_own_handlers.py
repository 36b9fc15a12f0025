"""Apps and libraries that handle SIGTERM themselves, and hosts that signal the whole process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support.apps import PLAIN, source
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

DEAF = ("request, loop", "request, ignored", "request, removed")  # before the order went over the channel


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "where",
    [
        "import",
        "import, exits",
        "import, ignored",
        "lifespan",
        "lifespan, loop",
        "lifespan, exits",
        "lifespan, removed",
        "request",
        *DEAF,
    ],
)
def test_a_worker_hears_its_arbiter_and_so_does_its_app(
    make_server: MakeServer, where: str, loop: str
) -> None:
    server = make_server(source("own_handlers"))
    options = ("-w", "1", "--graceful-timeout", "30")
    server.start(*options, env={"WHERE": where, "UVICORN_LOOP": loop}, ready=1)
    server.get()
    server.ends_within(15)
    assert server.logged("exited with code 0 after draining")
    silent = where.endswith(("ignored", "removed"))
    assert (server.directory / "heard").exists() != silent


def test_a_reload_too(make_server: MakeServer) -> None:
    server = make_server(source("own_handlers"))
    server.start("-w", "1", "--graceful-timeout", "30", env={"WHERE": "request, ignored"}, ready=1)
    server.get()
    server.signal(signal.SIGHUP)
    server.wait_logged("exited with code 0 after draining", timeout=15)


# --- TERM to all processes

DELAY = 3.0


def answers_until(server: Server, end: float) -> int:
    """How many requests until then, each on a connection of its own; one that fails raises."""
    count = 0
    while time.monotonic() < end:
        assert server.get().text == "ok"
        count += 1
    return count


@pytest.fixture
def group(make_server: MakeServer) -> Server:
    """A server in a process group of its own."""
    server = make_server(PLAIN)
    before = os.getpgid(0)
    command = [sys.executable, "-c", GROUP, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    server.start("-w", "2", env={"MULTICORE_SHUTDOWN_DELAY": str(DELAY)}, command=command, ready=2)
    assert os.getpgid(server.pid) == server.pid != before
    return server


GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"


def test_the_delay_holds_where_the_whole_group_is_told_to_end(group: Server) -> None:
    began = time.monotonic()
    os.killpg(group.pid, signal.SIGTERM)  # Heroku, systemd, dumb-init
    group.wait_logged("still answering")
    assert answers_until(group, began + DELAY - 1)
    assert group.wait_exit() == 0
    assert time.monotonic() - began >= DELAY
    assert len(group.logged("draining")) == len(group.logged("exited with code 0 after draining")) * 2 == 4
    assert len(group.logged("started")) <= 3  # at most one was to be replaced before the arbiter knew


def test_term_to_a_worker_alone_replaces_it(group: Server) -> None:
    worker = group.worker_of(0)
    os.kill(worker, signal.SIGTERM)
    group.wait_logged(r"gen=2 pid=\d+ started to replace pid=\d+ \(manual\)")
    group.wait_logged(f"pid={worker} exited with code 0 after draining")


@pytest.mark.filterwarnings("ignore:pkg_resources:UserWarning")
def test_supervisord_that_stops_the_group(make_server: MakeServer, tmp_path: Path) -> None:
    pytest.importorskip("supervisor")
    server = make_server(PLAIN)
    gunicorn = f"{sys.executable} -m gunicorn -k multicore_server.Worker -w 2"
    server.write(
        "supervisord.conf",
        f"""
[supervisord]
nodaemon = true
logfile = {tmp_path}/supervisord.log
pidfile = {tmp_path}/supervisord.pid
[program:web]
command = {gunicorn} -b 127.0.0.1:{server.port} app:app
directory = {server.directory}
environment = MULTICORE_METRICS_BIND="none",MULTICORE_SHUTDOWN_DELAY="{DELAY}"
stopasgroup = true
killasgroup = true
stopwaitsecs = 30
redirect_stderr = true
stdout_logfile = {server.log_path}
""",
    )
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"]
    environ = {**os.environ, "PYTHONWARNINGS": "ignore"}
    server.process = subprocess.Popen(command, cwd=server.directory, env=environ, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(server.logged("ready after")) == 2, "two workers")
    server.signal(signal.SIGTERM)
    server.wait_logged("still answering")
    began = time.monotonic()
    assert answers_until(server, began + DELAY - 1)
    server.process.wait(20)
    with pytest.raises(httpx.HTTPError):
        server.get()
    assert len(server.logged("exited with code 0 after draining")) == 2
