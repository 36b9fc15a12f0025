"""Troubles of the monitor are nobody else's; nothing of it is left behind."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.apps import ASK, HELLO
from tests.support.asking import ask
from tests.support.deploying import deploy, hup
from tests.support.load import load
from tests.support.monitored_server import (
    DIES,
    MakeMonitored,
    MonitoredServer,
    left_behind,
    over,
    start_configured,
)
from tests.support.privileges import readable_by_all
from tests.support.processes import gone, is_monitor, wait_gone
from tests.support.waiting import wait_for

# --- what befalls it


def test_a_killed_monitor_comes_back(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    with load(monitored.server) as answered:
        for count in (1, 2):
            before = monitored.server.monitor()
            os.kill(before, signal.SIGKILL)
            monitored.server.wait_logged(rf"monitor pid={before} exited \(status -9\); restarting it in")
            wait_for(lambda: monitored.answers("/readyz"), "the monitor's return")
            assert monitored.status()["monitor"]["pid"] != before, count
    delays = re.findall(r"restarting it in (\d\.\d)", monitored.server.log)
    assert len(delays) == 2
    monitored.wait_counted({"GET 2xx": sum(answered.answers.values())})
    assert not monitored.server.logged("ERROR|gen=.* exited|unstable")


def test_a_monitor_that_cannot_live_is_tried_ever_more_slowly(monitored: MonitoredServer) -> None:
    """Nothing of the server waits for it, and the log is not flooded."""
    monitored.server.write("conf.py", DIES)
    monitored.start("-w", "1", "-c", "conf.py")
    monitored.server.wait_ready(1)
    lines = monitored.server.wait_logged(r"monitor pid=\d+ exited \(status 7\)", 4)
    delays = [float(re.findall(r"restarting it in ([\d.]+) s", line)[0]) for line in lines]
    assert delays == sorted(delays)
    assert delays[0] == 0 < delays[-1]
    assert ask(monitored.server, "1 + 1") == 2
    monitored.server.ends_within(5)
    assert left_behind(monitored) == []


def test_a_stopped_monitor_stops_nobody_else(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    monitor = monitored.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    with load(monitored.server, "version") as requests_:
        deploy(monitored.server, 2)
        hup(monitored.server)
        requests_.wait_for(2)
    monitored.server.ends_within(5)
    assert gone(monitor)
    assert left_behind(monitored) == []


def test_a_silent_monitor_is_replaced(monitored: MonitoredServer) -> None:
    monitored.server.write(
        "conf.py", "import multicore_server.arbiter.monitor_process as it\nit.SILENCE = 2.0"
    )
    monitored.start("-w", "1", "-c", "conf.py", ready=1)
    monitor = monitored.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    monitored.server.wait_logged(rf"monitor pid={monitor} has hung for [23] s; killing it")
    wait_for(lambda: monitored.answers("/readyz"), "another monitor")
    assert monitored.status()["monitor"]["pid"] != monitor


def test_a_monitor_that_was_told_to_end_while_it_was_stopped(configured: MonitoredServer) -> None:
    """A reload moves its address: the old one is in the way until it is killed."""
    server, second = configured.server, free_port()
    server.write("silence.py", "import multicore_server.arbiter.monitor_process as it\nit.SILENCE = 2.0")
    start_configured(configured, pythonpath=".")
    # conf.py is loaded by the arbiter, which is where the constant is.
    text = f"import silence\nworkers = 1\nmetrics_bind = '{LOCAL}:{second}'\n"
    server.write("conf.py", "import sys; sys.path.insert(0, '.')\n" + text)
    monitor = server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    hup(server)
    assert ask(server, "1 + 1") == 2
    wait_for(lambda: configured.answers("/readyz", second), "the monitor at its new address")
    assert gone(monitor)


def test_it_ends_with_an_arbiter_that_was_killed_and_the_next_one_cleans_up(
    make_monitored: MakeMonitored,
) -> None:
    monitored, heir = make_monitored(ASK).start("-w", "1", ready=1), make_monitored(ASK)
    monitor, socket_path = monitored.server.monitor(), monitored.socket
    monitored.server.signal(signal.SIGKILL)
    monitored.server.wait_exit()
    wait_gone(monitor)
    assert refuses(monitored.port)
    assert socket_path.exists()
    heir.start("-w", "1", env={"XDG_RUNTIME_DIR": str(monitored.runtime)}, ready=1)
    assert [path.name for path in socket_path.parent.iterdir()] == [f"{heir.server.pid}.sock"]


def test_without_descriptors_the_server_lives(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={"MULTICORE_MAX_MEMORY_RESTART": "80%"}, ready=1)
    psutil.Process(monitored.server.pid).rlimit(psutil.RLIMIT_NOFILE, (5, 5))
    before = monitored.metrics()["process_cpu_seconds_total"]
    os.kill(monitored.server.monitor(), signal.SIGKILL)
    monitored.server.wait_logged("the monitor could not be forked .*Too many open files")
    os.kill(monitored.server.pid, signal.SIGHUP)
    monitored.server.wait_logged("reload (failed|rolled back)")
    assert before > 0
    assert ask(monitored.server, "1 + 1") == 2
    monitored.server.ends_within(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_nothing_is_left(monitored: MonitoredServer, number: signal.Signals) -> None:
    monitored.start("-w", "2", ready=2)
    family = monitored.server.children()
    assert len(family) == 3
    assert len(left_behind(monitored)) == 1
    monitored.server.signal(number)
    assert monitored.server.wait_exit(5) == 0
    assert [pid for pid in family if not gone(pid)] == []
    assert left_behind(monitored) == []
    assert refuses(monitored.port)


@pytest.mark.parametrize(
    ("app", "settings", "status"),
    [
        ("import nowhere", {}, 3),
        (HELLO, {"MULTICORE_MAX_RESTARTS": "often"}, 1),
        (HELLO, {"MULTICORE_METRICS_BIND": "nowhere"}, 1),
    ],
    ids=["boot", "setting", "address"],
)
def test_a_start_that_fails_leaves_nothing(
    make_monitored: MakeMonitored, app: str, settings: dict[str, str], status: int
) -> None:  # fmt: skip
    monitored = make_monitored(app)
    monitored.start("-w", "2", env=settings)
    assert monitored.server.wait_exit() == status
    assert left_behind(monitored) == []
    assert refuses(monitored.port)
    assert not monitored.server.logged("Traceback.*monitor")


def test_ctrl_c_does_not_end_it_before_the_server(monitored: MonitoredServer) -> None:
    """It is not in the group that a terminal's signals go to."""
    monitored.start("-w", "1", ready=1)
    monitor = monitored.server.monitor()
    assert os.getpgid(monitor) == monitor
    assert os.getpgid(monitored.server.worker_of(0)) == os.getpgid(monitored.server.pid)
    os.kill(monitor, signal.SIGHUP)
    assert monitored.answers("/readyz")


# --- who runs it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_it_drops_privileges_with_the_workers(monitored: MonitoredServer, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    # As in test_user_and_group: where nobody may not read Python itself.
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    command = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    monitored.start("-w", "1", "-u", "nobody", "-g", "nogroup", command=command, ready=1)
    monitor = psutil.Process(monitored.server.monitor())
    assert set(monitor.uids()) == {65534}
    assert set(monitor.gids()) == {65534}
    assert (monitored.socket.stat().st_uid, stat.S_IMODE(monitored.socket.stat().st_mode)) == (0, 0o600)
    assert monitored.command("scale", workers=2).status_code == 200
    wait_for(lambda: monitored.status()["ready"] == 2, "two workers")
    os.kill(monitored.server.monitor(), signal.SIGKILL)
    wait_for(lambda: monitored.answers("/readyz"), "the monitor's return")
    assert set(psutil.Process(monitored.server.monitor()).uids()) == {65534}
    monitored.server.ends_within(10)
    assert left_behind(monitored) == []


def test_with_daemon(monitored: MonitoredServer, ending: list[int]) -> None:
    server = monitored.server
    options = ("--daemon", "-p", "server.pid", "--error-logfile", str(server.log_path))
    monitored.start("-w", "1", *options)
    server.wait_ready(1)
    arbiter = int((server.directory / "server.pid").read_text())
    ending.append(arbiter)
    monitored.wait_answering()
    status = monitored.status()
    assert status["arbiter"]["pid"] == arbiter
    assert is_monitor(status["monitor"]["pid"])
    path = monitored.socket.with_name(f"{arbiter}.sock")
    assert over(path, "/commands/stop", "POST").status_code == 200
    wait_gone(arbiter)
    wait_gone(status["monitor"]["pid"])
    assert left_behind(monitored) == []
