"""Processes that an app forks: they hold nothing of their worker's, and do not outlive it for long."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.apps import source
from tests.support.processes import gone, wait_gone
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

OPTIONS = ("-w", "1", "--graceful-timeout", "2")


@pytest.fixture
def children() -> Iterator[list[int]]:
    """Pids that are killed at the end, whatever comes."""
    found: list[int] = []
    yield found
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, make_server: MakeServer) -> Server:
    made = make_server(source("forks"))
    return made.start(*OPTIONS, ready=1, env={"UVICORN_LOOP": request.param})


def fork(server: Server, children: list[int], path: str = "/fork") -> int:
    children.append(int(server.get(path).content))
    return children[-1]


def kill_worker(server: Server) -> None:
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_ready(2)


def test_what_a_killed_worker_leaves_is_named_and_ended(server: Server, children: list[int]) -> None:
    pid, deaf = fork(server, children), fork(server, children, "/fork/deaf")
    kill_worker(server)
    (line,) = server.wait_logged("left 2 processes of its app running")
    assert f"gunicorn {pid}" in line or f"python {pid}" in line or f"python3 {pid}" in line
    assert not gone(pid)
    wait_gone(pid)
    assert not gone(deaf)
    wait_gone(deaf)
    assert server.get("/").content


def test_a_daemon_is_left_alone(server: Server, children: list[int]) -> None:
    daemon, pid = fork(server, children, "/fork/session"), fork(server, children)
    kill_worker(server)
    wait_gone(pid)
    assert not gone(daemon)


def test_what_is_left_at_the_end_is_told_to_end(server: Server, children: list[int]) -> None:
    pid = fork(server, children)
    server.signal(signal.SIGTERM)
    server.wait_exit()
    wait_gone(pid)


def test_a_child_does_not_hold_the_port(server: Server, children: list[int]) -> None:
    pid = fork(server, children)
    workers = server.workers()
    server.signal(signal.SIGKILL)
    server.wait_exit()
    for worker in workers:
        wait_gone(worker)
    assert not gone(pid)
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_a_child_holds_no_connection(server: Server, children: list[int], connect: Connect) -> None:
    connection = connect(server.port)
    assert connection.send(request("/")).answer().status == 200
    fork(server, children)
    assert connection.send(request("/", "Connection: close")).answer().status == 200
    assert connection.socket.recv(1) == b""  # or the test times out


def test_the_end_of_a_child_is_not_the_end_of_its_worker(server: Server, children: list[int]) -> None:
    pid, worker = fork(server, children), server.workers()
    server.get(f"/terminate/{pid}")
    wait_for(lambda: gone(pid), "the end of the child")
    until = time.monotonic() + 1
    wait_for(lambda: time.monotonic() > until, "what a drain takes")
    assert server.workers() == worker
    assert "draining" not in server.log


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_multiprocessing_ends_its_children_alone(make_server: MakeServer, loop: str) -> None:
    server = make_server(source("multiprocessing_fork"))
    server.start(*OPTIONS, env={"UVICORN_LOOP": loop}, ready=1)
    worker = server.worker_of(0)
    for _ in range(3):
        told = server.get().json()
        assert told == {"pid": worker, "code": -signal.SIGTERM, "pooled": 6}
    assert "draining" not in server.log


def test_a_child_that_keeps_a_worker_from_ending_is_named(make_server: MakeServer) -> None:
    server = make_server(source("multiprocessing_fork")).start(*OPTIONS, ready=1)
    child = server.get("/stays").json()
    server.signal(signal.SIGTERM)
    server.wait_logged(rf"\[WARNING\] .* multiprocessing waits for its child processes {child}, ")
    os.kill(child, signal.SIGKILL)
    assert server.wait_exit() == 0
