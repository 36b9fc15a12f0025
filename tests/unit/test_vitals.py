"""What the arbiter measures of itself and of its listeners."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from multicore_server.arbiter import vitals
from multicore_server.arbiter.vitals import INTERVAL, Vitals, backlog
from multicore_server.ipc.scoreboard import Head, Scoreboard
from multicore_server.machine.descriptors import raise_descriptor_limit

linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_backlog_is_what_nobody_has_accepted(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=10) as listener:
        assert backlog(listener) == 0
        clients = [socket.create_connection(listener.getsockname()[:2]) for _ in range(4)]
        assert backlog(listener) == 4
        listener.accept()[0].close()
        assert backlog(listener) == 3
        for client in clients:
            client.close()
        # A client that has left is still to be accepted.
        assert backlog(listener) == 3


@linux
def test_where_the_kernel_does_not_say_it_is_0(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s.sock"))
            assert backlog(listener) == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        pass
    assert backlog(closed) == 0


@linux
def test_all_listeners_count_also_gunicorns_objects() -> None:
    head = Scoreboard(1).head
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        clients = [socket.create_connection(it.getsockname()) for it in (one, two, two)]
        Vitals(head).sample([one, SimpleNamespace(sock=two)], 1.0)
        for client in clients:
            client.close()
    assert head[Head.LISTEN_BACKLOG] == 3


def test_the_arbiters_own_process() -> None:
    head, process = Scoreboard(1).head, psutil.Process()
    Vitals(head).sample([], 1.0)
    memory = process.memory_info()
    assert head[Head.START_TIME] == process.create_time()
    assert head[Head.RESIDENT_MEMORY] == pytest.approx(memory.rss, rel=0.1)
    assert head[Head.VIRTUAL_MEMORY] == pytest.approx(memory.vms, rel=0.1)
    assert 0 < head[Head.CPU_SECONDS] <= sum(process.cpu_times()[:2]) + 0.1
    assert head[Head.MAX_FDS] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if sys.platform == "linux":
        assert abs(head[Head.OPEN_FDS] - process.num_fds()) <= 2


@linux
def test_open_descriptors_are_counted_with_and_without_the_kernels_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for helps in (True, False):
        if not helps:  # as Linux before 6.2
            monkeypatch.setattr(vitals, "_size_on_linux", lambda _: 0)
        before = vitals._open_descriptors()
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.socket())
            assert vitals._open_descriptors() == before + 5
        found.append(before)
    assert found[0] == found[1] == psutil.Process().num_fds() - 1  # it has one open itself as it lists them


def test_where_the_machine_hides_when_it_was_started_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def hides() -> float:
        raise PermissionError

    monkeypatch.setattr(vitals, "start_time", hides)
    head, before = Scoreboard(1).head, time.time()
    Vitals(head).sample([], 1.0)
    assert before <= head[Head.START_TIME] <= time.time()


def test_once_a_second() -> None:
    head = Scoreboard(1).head
    measuring = Vitals(head)
    measuring.sample([], 10.0)
    for moment, measured in ((10.0 + INTERVAL * 0.9, False), (10.0 + INTERVAL, True)):
        head[Head.START_TIME] = 0
        measuring.sample([], moment)
        assert bool(head[Head.START_TIME]) is measured


@linux
def test_without_descriptors_it_shows_what_it_had() -> None:
    """And never raises: its caller is the arbiter's loop."""
    head = Scoreboard(1).head
    measuring = Vitals(head)
    measuring.sample([], 1.0)
    resident = head[Head.RESIDENT_MEMORY]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            measuring.sample([], 1.0 + INTERVAL)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert head[Head.RESIDENT_MEMORY] == resident


def test_the_limit_of_descriptors_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[0], 256), before[1]))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (before[1], before[0])
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
