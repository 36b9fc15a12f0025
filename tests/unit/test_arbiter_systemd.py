"""What systemd is told, and what not."""

from __future__ import annotations

import faulthandler
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multicore_server.arbiter import systemd
from multicore_server.arbiter.report import in_words
from multicore_server.arbiter.systemd import Service
from multicore_server.fleet import events as ev
from tests.support.waiting import wait_for
from tests.unit.simulation import hup, serving


class Manager:
    """systemd's end."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """What has been told since."""
        found: list[str] = []
        try:
            while True:
                found.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return found


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    for name in (*systemd.VARIABLES, "GUNICORN_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(faulthandler, "enable", lambda: None)
    yield made
    made.socket.close()


@pytest.fixture
def service(manager: Manager) -> Service:
    made = Service()
    made.take()
    return made


def test_its_variables_are_taken_out_of_the_environment(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn would say READY before any worker is, and an app's library might feed the watchdog."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    service = Service()
    service.take()
    service.take()  # at each new configuration
    assert not set(systemd.VARIABLES) & set(os.environ)
    service.ready()
    assert manager.heard() == ["READY=1"]


def test_a_reload(service: Service, manager: Manager) -> None:
    service.reloading()
    service.reloaded("it did not start")
    assert manager.heard() == []  # no worker is ready yet: so it is not
    service.ready()
    service.reloading()
    service.reloaded("")
    ready, reloading, again = manager.heard()
    assert (ready, again) == ("READY=1", "READY=1")
    state, clock = reloading.split("\n")
    assert state == "RELOADING=1"
    assert int(clock.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_status_is_told_when_it_changes(service: Service, manager: Manager) -> None:
    service.status("2 of 2 workers ready")
    service.status("2 of 2 workers ready")
    assert manager.heard() == ["STATUS=2 of 2 workers ready"]
    service.reloaded("reload failed:\nno such file")
    service.status("2 of 2 workers ready")
    assert manager.heard() == ["STATUS=2 of 2 workers ready; reload failed: no such file"]
    service.reloading()
    service.status("2 of 2 workers ready")
    assert manager.heard() == ["STATUS=2 of 2 workers ready"]


@pytest.mark.parametrize(
    ("environ", "signs"),
    [
        ({"WATCHDOG_USEC": "4000000"}, 3),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 3),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, 0),  # of another process
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_watchdog_is_fed_at_half_of_its_time(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], signs: int
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    service = Service()
    service.take()
    for now in (100.0, 101.9, 102.0, 103.0, 104.1):
        service.alive(now)
    assert manager.heard() == ["WATCHDOG=1"] * signs
    assert service.due(104.1) == (106.1 if signs else None)


def test_an_arbiter_beside_another_is_silent_until_it_is_promoted(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUNICORN_PID", "1")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    service = Service()
    service.take()
    service.ready()
    service.status("1 of 1 workers ready")
    assert manager.heard() == []
    service.promoted()
    told: list[str] = []
    while len(told) < 4:
        told += wait_for(manager.heard, "what both processes tell")
    assert told[:2] == ["STATUS=1 of 1 workers ready", "READY=1"]
    # Another process is the main one for a moment.
    assert told[2].startswith("MAINPID=")
    assert told[3] == f"MAINPID={os.getpid()}" != told[2]
    assert os.waitpid(int(told[2].removeprefix("MAINPID=")), 0)[1] == 0


def test_an_arbiter_that_hands_over_has_said_its_last(service: Service, manager: Manager) -> None:
    service.hand_over(0)  # there is no successor
    service.stopping()
    assert manager.heard() == ["STOPPING=1"]
    service.hand_over(4711)
    service.status("gone")
    assert manager.heard() == ["MAINPID=4711"]


def test_what_systemd_has_no_room_for_waits(service: Service, manager: Manager) -> None:
    """And nothing waits for it."""
    sent = 0
    while service.due(0.0) is None:
        service.status(str(sent))
        sent += 1
        assert sent < 10_000
    assert service.due(5.0) == 5.0 + systemd.RETRY
    heard = manager.heard()
    service.alive(0.0)
    assert [*heard, *manager.heard()] == [f"STATUS={number}" for number in range(sent)]
    assert service.due(0.0) is None


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in systemd.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    service = Service()
    service.take()
    service.ready()
    service.promoted()
    service.alive(1.0)
    assert service.due(1.0) is None


def test_an_address_that_nobody_listens_at_costs_nothing(
    service: Service, manager: Manager, tmp_path: Path
) -> None:
    service.ready()
    manager.socket.close()
    service.ready()
    (tmp_path / "notify").unlink()
    service.ready()
    assert service.due(0.0) is None


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"multicore-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        service = Service()
        service.take()
        service.stopping()
        assert listener.recv(100) == b"STOPPING=1"


def test_a_fleet_in_words() -> None:
    world = serving(3)
    assert in_words(world.fleet) == "3 of 3 workers ready"
    hup(world, 3)
    assert in_words(world.fleet) == "3 of 3 workers ready, reloading"
    world.run(30)
    world.observe(ev.Stop(graceful=True))
    assert in_words(world.fleet) == "0 of 3 workers ready, stopping"


def test_a_fleet_in_words_says_which_workers_are_missing() -> None:
    world = serving(2, max_restarts=0, min_uptime=60.0)
    world.end("0.1", 1)
    assert in_words(world.fleet) == "1 of 2 workers ready, 1 errored"
