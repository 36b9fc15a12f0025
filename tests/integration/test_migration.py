"""Connections outlive workers: in a planned replacement they move to siblings, unbroken."""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.support.deploying import hup, wait_workers
from tests.support.moving_connections import (
    APP,
    APPS,
    ENGINES,
    WSGI,
    answer,
    ask,
    stays,
    wait_drained,
    wait_moved,
)
from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer, Server
from tests.support.threads import running
from tests.support.waiting import wait_for


@pytest.fixture
def moving(make_server: MakeServer) -> Server:
    return make_server(APP)


@contextmanager
def kept_busy(connections: list[Connection]) -> Iterator[list[int]]:
    """Strict clients that ask without pause; yields who answers."""
    done = threading.Event()
    pids: list[int] = []
    failures: list[Exception] = []

    def work(connection: Connection) -> None:
        try:
            while not done.is_set():
                pids.append(stays(connection).pid)
        except (OSError, AssertionError, ValueError) as exc:
            failures.append(exc)

    with running(*[partial(work, connection) for connection in connections], end=done.set):
        yield pids
    assert failures == []


# --- idle connections ---


@pytest.mark.parametrize(
    ("app", "engine", "workers"),
    [("asgi", "uvloop", 2), ("asgi", "asyncio", 2), ("wsgi", "uvloop", 2), ("asgi", "uvloop", 1)],
)
def test_one_connection_is_answered_by_ten_workers(
    make_server: MakeServer, connect: Connect, app: str, engine: str, workers: int
) -> None:
    options = ("-w", str(workers), "--keep-alive", "60")
    server = make_server(APPS[app]).start(*options, env=ENGINES[engine], ready=workers)
    connection = connect(server.port)
    name = connection.socket.getsockname()
    pids = [stays(connection).pid]
    for _ in range(9):
        hup(server)
        wait_workers(server, workers)
        pids.append(stays(connection).pid)
    assert len(set(pids)) == 10
    assert connection.socket.getsockname() == name
    assert server.logged("ERROR|WARNING") == []


def test_a_connection_that_was_never_used_moves(moving: Server, connect: Connect) -> None:
    moving.start("-w", "2", ready=2)
    connections = [connect(moving.port) for _ in range(4)]
    first = moving.workers()
    hup(moving)
    wait_workers(moving, 2)
    assert {stays(connection).pid for connection in connections}.isdisjoint(first)


def test_the_adopter_arms_the_keep_alive_timeout(moving: Server, connect: Connect) -> None:
    moving.start("-w", "1", "--keep-alive", "1", ready=1)
    connection = connect(moving.port)
    stays(connection)
    pid = moving.worker_of(0)
    hup(moving)
    wait_drained(moving, pid)
    assert connection.ends()
    assert stays(connect(moving.port)).pid == moving.worker_of(0)


def test_a_client_that_has_left_is_no_trouble(moving: Server, connect: Connect) -> None:
    moving.start("-w", "2", ready=2)
    for _ in range(4):
        connection = connect(moving.port)
        stays(connection)
        connection.close()
    hup(moving)
    assert moving.logged("ERROR|WARNING|Traceback") == []


# --- busy connections ---


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("app", APPS)
def test_a_busy_connection_follows_when_its_response_is_complete(
    make_server: MakeServer, connect: Connect, app: str, engine: str
) -> None:
    server = make_server(APPS[app]).start("-w", "1", env=ENGINES[engine], ready=1)
    connection = connect(server.port).send(request("/hold"))
    wait_for((server.directory / "held").exists)
    old = server.worker_of(0)
    hup_begun(server)
    server.write("release", "")
    first = answer(connection)
    assert (first.pid, first.is_last) == (old, False)
    assert wait_moved(connection, old) == server.worker_of(0)
    wait_drained(server, old)


def hup_begun(server: Server) -> None:
    """Reload, as far as one worker that is busy lets it: its replacement is ready, it drains."""
    server.signal(signal.SIGHUP)
    server.wait_logged("draining")


@pytest.mark.parametrize("engine", ENGINES)
def test_half_a_request_is_answered_where_it_began(moving: Server, connect: Connect, engine: str) -> None:
    moving.start("-w", "1", env=ENGINES[engine], ready=1)
    old = moving.worker_of(0)
    head = connect(moving.port).send(b"GET /head HTTP/1.1\r\nHo")
    body = connect(moving.port).send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
    later = connect(moving.port)
    stays(later)
    later.send(b"GET /later HT")
    time.sleep(0.1)  # until it has arrived
    hup_begun(moving)
    body.send(b"56789")
    assert answer(body).body == "0123456789"
    head.send(b"st: x\r\n\r\n")
    later.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert [answer(head).pid, answer(later).pid] == [old, old]
    successors = {wait_moved(connection, old) for connection in (head, body, later)}
    assert successors == {moving.worker_of(0)}


@pytest.mark.parametrize("engine", ENGINES)
def test_pipelined_requests_are_answered_before_it_moves(
    moving: Server, connect: Connect, engine: str
) -> None:
    moving.start("-w", "1", env=ENGINES[engine], ready=1)
    old = moving.worker_of(0)
    connection = connect(moving.port)
    connection.send(request("/hold") + request("/2") + request("/3") + b"GET /4 HT")
    wait_for((moving.directory / "held").exists)
    hup_begun(moving)
    moving.write("release", "")
    assert [answer(connection).path for _ in range(3)] == ["/hold", "/2", "/3"]
    connection.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    last = answer(connection)
    assert (last.path, last.pid) == ("/4", old)
    assert wait_moved(connection, old) == moving.worker_of(0)


# --- every planned replacement ---


def test_hup_during_hup(moving: Server, connect: Connect) -> None:
    moving.start("-w", "2", ready=2)
    first = moving.workers()
    with kept_busy([connect(moving.port) for _ in range(4)]) as pids:
        for _ in range(3):
            moving.signal(signal.SIGHUP)
            time.sleep(0.1)
        moving.wait_logged("reload done", 2)
    wait_for(lambda: len(moving.workers()) == 2)
    assert len(set(pids) - set(first)) >= 2
    assert moving.logged("ERROR|Traceback") == []


@pytest.mark.parametrize("app", APPS)
def test_max_requests(make_server: MakeServer, connect: Connect, app: str) -> None:
    limits = ["--max-requests", "200", "--max-requests-jitter", "100"]
    server = make_server(APPS[app]).start("-w", "2", *limits, ready=2)
    with kept_busy([connect(server.port) for _ in range(4)]) as pids:
        server.wait_logged("exited with code 0 after draining", 4)
    assert len(set(pids)) >= 4


def test_scaling_down(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(WSGI).start("-w", "3", ready=3)
    with kept_busy([connect(server.port) for _ in range(6)]):
        for left in (2, 1):
            server.signal(signal.SIGTTOU)
            wait_workers(server, left)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0


def test_a_worker_that_someone_terminates(moving: Server, connect: Connect) -> None:
    moving.start("-w", "2", ready=2)
    connections = [connect(moving.port) for _ in range(4)]
    with kept_busy(connections[:2]):
        stays(connections[2])
        for instance in (0, 1):
            pid = moving.worker_of(instance)
            os.kill(pid, signal.SIGTERM)
            wait_drained(moving, pid)
            wait_workers(moving, 2)
    assert not {stays(connection).pid for connection in connections} - set(moving.workers())


def test_a_successor_that_comes_late(moving: Server, connect: Connect) -> None:
    moving.start("-w", "1", ready=1)
    connection = connect(moving.port)
    old = stays(connection).pid
    os.kill(old, signal.SIGTERM)
    wait_drained(moving, old)
    assert stays(connection).pid == moving.worker_of(0) != old


# --- what cannot move ---


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_tls_connection_is_told_that_it_ends(
    moving: Server, connect: Connect, trusting: ssl.SSLContext, loop: str
) -> None:
    options = ["--certfile", "../cert.pem", "--keyfile", "../key.pem"]
    moving.start("-w", "2", *options, env={"UVICORN_LOOP": loop}, ready=2)
    busy, idle = connect(moving.port, tls=trusting), connect(moving.port, tls=trusting)
    ask(idle)
    busy.send(request("/hold"))
    wait_for((moving.directory / "held").exists)
    moving.signal(signal.SIGHUP)
    assert idle.ends()  # after the linger
    moving.write("release", "")
    assert answer(busy).is_last
    assert busy.ends()
    moving.wait_logged("reload done")
