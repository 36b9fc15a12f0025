"""The units of examples/systemd under a real systemd."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.apps import TROUBLED
from tests.support.server import Server
from tests.support.systemd import EXAMPLES, Machine
from tests.support.waiting import wait_for

QUICK = "[Service]\nEnvironment=MULTICORE_WORKERS=2\nWatchdogSec=1\nRestartSec=100ms\n"


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    server.write("app.py", TROUBLED)
    made = Machine(server.directory, tmp_path)
    made.drop_in("quick", QUICK)
    assert made.systemctl("daemon-reload").returncode == 0
    yield made
    made.close()


def start(machine: Machine) -> None:
    done = machine.systemctl("start", "api.socket", "api.service")
    assert done.returncode == 0, done.stderr


def wait_status(machine: Machine, words: str) -> None:
    wait_for(lambda: re.fullmatch(words, machine.show("StatusText")), f"the status {words!r}")


def answer_while_it_stops(machine: Machine, server: Server, client: httpx.Client) -> int:
    """Of a request that was begun before."""
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(client.get("/slow?1").status_code))
    slow.start()
    server.wait_logged("SLOW")
    assert machine.systemctl("stop", "api").returncode == 0
    slow.join()
    (answer,) = answers
    return answer


def test_start_reload_watchdog_and_stop(machine: Machine, server: Server) -> None:
    start(machine)
    wait_status(machine, "2 of 2 workers ready")
    assert machine.systemctl("reload", "api").returncode == 0
    assert len(server.logged(r"\[INFO\] reload done: 2 workers")) == 1
    server.write("app.py", "import nowhere")
    failed = machine.systemctl("reload", "api")
    assert failed.returncode == 1
    wait_status(machine, "2 of 2 workers ready; reload rolled back: .* No module named 'nowhere'.*")
    server.write("app.py", TROUBLED)
    assert machine.systemctl("reload", "api").returncode == 0
    wait_status(machine, "2 of 2 workers ready")

    assert machine.show("NRestarts") == "0"  # it has been fed
    machine.kill("STOP")
    wait_for(lambda: machine.show("NRestarts") == "1", "the watchdog")
    wait_status(machine, "2 of 2 workers ready")
    assert server.logged("Fatal Python error: Aborted")

    with machine.client() as client:  # a request that was begun has its answer
        assert answer_while_it_stops(machine, server, client) == 200
    assert machine.show("Result") == "success"


def test_usr2_makes_another_main_process(machine: Machine, server: Server) -> None:
    start(machine)
    old = machine.show("MainPID")
    machine.kill("USR2")
    server.wait_ready(4)
    assert machine.show("MainPID") == old
    machine.kill("TERM")
    wait_for(lambda: machine.show("MainPID") not in (old, "0"), "another main process")
    server.wait_logged("has been promoted")
    wait_status(machine, "2 of 2 workers ready")
    assert machine.show("ActiveState") == "active"
    with machine.client() as client:
        assert client.get("/").status_code == 200
        # It is systemd's child: otherwise it would be killed without a wait for its end.
        assert answer_while_it_stops(machine, server, client) == 200
    assert (machine.show("Result"), machine.show("NRestarts")) == ("success", "0")


def test_a_reload_by_signal(machine: Machine, server: Server) -> None:
    """``Type=notify-reload``."""
    version = re.match(r"systemd (\d+)", machine.systemctl("--version").stdout)
    assert version is not None
    if int(version[1]) < 253:
        pytest.skip(f"Type=notify-reload is of systemd 253: this is {version[1]}")
    shutil.copy(EXAMPLES / "notify-reload.conf", machine.units / "api.service.d")
    assert machine.systemctl("daemon-reload").returncode == 0
    start(machine)
    server.wait_ready(2)
    assert machine.systemctl("reload", "api").returncode == 0
    assert len(server.logged(r"\[INFO\] reload done: 2 workers")) == 1
