"""What a worker or the monitor sends cannot hurt the arbiter; what they show, nobody else can read."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.asking import ask
from tests.support.deploying import deploy, hup
from tests.support.monitored_server import MakeMonitored, MonitoredServer, over
from tests.support.privileges import readable_by_all
from tests.support.waiting import wait_for

# --- messages ---


def test_a_reload_that_fails_with_many_emoji_is_rolled_back_with_its_reason(
    monitored: MonitoredServer,
) -> None:
    """Their message was cut in the middle of one, and the arbiter ended when it could not be read."""
    monitored.start("-w", "2", ready=2)
    deploy(monitored.server, 2, 'raise RuntimeError("\\U0001f600" * 9000)')
    line = hup(monitored.server, "reload rolled back")
    assert "RuntimeError" in line
    assert "\U0001f600" in over(monitored.socket, "/status").json()["events"][-1]["text"]
    deploy(monitored.server, 3)
    hup(monitored.server)
    assert ask(monitored.server, "version") == 3


# Expressions: what is sent, and how a worker finds its channel.
GARBAGE = """(
    b"{", b"[" * 60_000, b"\\xff\\xfe", b"x" * 70_000, b'["LastWords", {}]', b'["StopCommand", {"id": 1}]'
)"""
CHANNELS = """[
    it for _, found in [(gc.unfreeze(), gc.get_objects())] for it in found
    if type(it).__name__ == "WorkerChannel" and it.child_end.fileno() >= 0
]"""
SEND = f"[channel.child_end.send(data) for channel in {CHANNELS} for data in {GARBAGE}]"


def test_garbage_on_a_workers_channel_costs_a_line(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    worker = monitored.server.worker_of(0)
    assert len(ask(monitored.server, SEND)) == 6
    monitored.server.wait_logged(rf"a message of .*pid={worker} is dropped: it is not a message")
    assert monitored.command("reload").status_code == 200
    monitored.server.wait_logged("reload done")
    assert len(monitored.server.logged("a message of .* is dropped")) == 1
    assert not monitored.server.logged("Traceback")


TALKS = """
import multicore_server.monitor.process as it
run = it.run
def talk(context):
    for data in {garbage}:
        context.channel.send(data)
    return run(context)
it.run = talk
"""


def test_garbage_on_the_monitors_channel_costs_a_line(monitored: MonitoredServer) -> None:
    digits = """(b'["ScaleCommand", {"id": 1, "workers": "+' + b"9" * 4300 + b'"}]',)"""
    monitored.server.write("conf.py", TALKS.format(garbage=f"{GARBAGE} + {digits}"))
    monitored.start("-w", "1", "-c", "conf.py", ready=1)
    monitor = monitored.server.monitor()
    assert len(monitored.server.wait_logged(rf"a message of monitor pid={monitor} is dropped")) == 1
    assert monitored.command("scale", workers=2).json()["ok"]
    wait_for(lambda: monitored.status()["ready"] == 2, "two workers")
    assert not monitored.server.logged("Traceback")


# --- signals ---

SLOW_BOOT = """
import time, multicore_server.monitor.process as it
run = it.run
def late(context):
    open("boots", "w").close()
    time.sleep(1.0)
    return run(context)
it.run = late
"""


def test_usr1_while_the_monitor_boots_waits_for_its_handler(monitored: MonitoredServer) -> None:
    """It rotates the logs, and killed the monitor six times of six."""
    monitored.server.write("conf.py", SLOW_BOOT)
    monitored.start("-w", "1", "-c", "conf.py")
    monitored.server.wait_ready(1)
    wait_for((monitored.server.directory / "boots").exists, "the monitor's boot")
    monitor = monitored.server.monitor()
    os.kill(monitor, signal.SIGUSR1)
    monitored.wait_answering()
    assert monitored.server.monitor() == monitor


# --- who can read ---


def listening(pid: int) -> set[str]:
    """The names of the unix sockets that a process and its children have, as they were bound."""
    arbiter = psutil.Process(pid)
    found = (process.net_connections("unix") for process in [arbiter, *arbiter.children()])
    return {str(connection.laddr) for group in found for connection in group if connection.laddr}


def test_without_an_address_there_is_the_command_socket_alone(make_monitored: MakeMonitored) -> None:
    """An abstract socket showed everybody on the machine /status, and every container of its network."""
    monitored = make_monitored()
    monitored.start("-w", "1", env={"MULTICORE_METRICS_BIND": "none"})
    monitored.server.wait_ready(1)
    wait_for(monitored.server.monitor, "the monitor")
    assert listening(monitored.server.pid) == {str(monitored.socket.with_suffix(".new"))}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_workers_of_another_user_show_the_metrics_and_nobody_finds_their_way(
    monitored: MonitoredServer, tmp_path: Path
) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    command = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    settings = {"MULTICORE_METRICS_BIND": "none", "MULTICORE_METRICS_PATH": "/metrics"}
    monitored.start("-w", "1", "-u", "nobody", "-g", "nogroup", command=command, env=settings)
    monitored.server.wait_ready(1)
    wait_for(lambda: served(monitored), "the monitor")
    names = listening(monitored.server.pid)
    assert not any(name.startswith(("@", "\0")) or Path(name).exists() for name in names)


def served(monitored: MonitoredServer) -> str:
    answer = monitored.server.get("/metrics")
    return answer.text if answer.status_code == 200 else ""


def test_a_reload_gives_and_takes_the_path(monitored: MonitoredServer) -> None:
    monitored.server.write("conf.py", "")
    monitored.start("-w", "2", "-c", "conf.py", ready=2)
    monitored.server.write("conf.py", 'metrics_path = "/metrics"')
    hup(monitored.server)
    wait_for(lambda: served(monitored), "the metrics on the app's port")
    assert all(served(monitored) for _ in range(6))  # by both workers
    monitored.server.write("conf.py", "")
    hup(monitored.server)
    assert monitored.server.get("/metrics").status_code == 500  # the app has no such expression


def test_other_names_are_refused_over_tcp(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={"MULTICORE_METRICS_HOSTS": "*.example.org"}, ready=1)

    def status(path: str, host: str) -> int:
        return monitored.get(path, headers={"host": host}).status_code

    assert [status("/status", it) for it in ("evil.example", "a.example.org", "10.0.0.7")] == [421, 200, 200]
    assert status("/readyz", "evil.example") == 200
