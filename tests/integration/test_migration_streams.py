"""Responses that take long, WebSockets and the last worker: what a reload and an end do to them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as connect_websocket

from tests.support.deploying import hup
from tests.support.moving_connections import APP, BIG, ENGINES, WSGI, ask, stays, wait_drained, wait_moved
from tests.support.raw_client import Connect, request
from tests.support.server import Server
from tests.support.waiting import wait_for


@pytest.fixture
def moving(make_server: Callable[..., Server]) -> Server:
    return make_server(APP)


# --- during a reload ---


@pytest.mark.parametrize("engine", ENGINES)
def test_a_slow_reader_gets_all_of_it_then_its_connection_moves(
    moving: Server, connect: Connect, engine: str
) -> None:
    # uvicorn counts the keep-alive time from when the app is done, not from when its client has it all.
    moving.start("-w", "1", "--keep-alive", "30", env=ENGINES[engine], ready=1)
    connection = connect(moving.port, buffer=4096).send(request("/big"))
    head = connection.head()
    assert head.headers["content-length"] == str(BIG)
    old = moving.worker_of(0)
    moving.signal(signal.SIGHUP)
    moving.wait_logged("draining")
    time.sleep(0.7)  # longer than idle connections are given
    assert connection.read(BIG) == bytes(BIG)
    assert not head.is_last
    wait_moved(connection, old)
    assert "code 0" in wait_drained(moving, old)


def test_an_event_stream_goes_on(moving: Server, connect: Connect) -> None:
    moving.start("-w", "1", ready=1)
    old = moving.worker_of(0)
    connection = connect(moving.port).send(request("/events"))
    connection.head()
    moving.signal(signal.SIGHUP)
    moving.wait_logged("draining")
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        assert connection.chunk() == f"data: {old}\n\n".encode()
    moving.write("release", "")
    assert set(iter(connection.chunk, b"")) <= {f"data: {old}\n\n".encode()}
    wait_moved(connection, old)


@pytest.mark.parametrize(
    ("ws", "scheduling"),
    [("websockets", "least"), ("websockets-sansio", "least"), ("wsproto", "least"), ("auto", "shared")],
)
def test_a_websocket_lives_until_the_end_of_graceful_timeout(
    moving: Server, ws: str, scheduling: str
) -> None:
    env = {"UVICORN_WS": ws, "MULTICORE_SCHEDULING": scheduling}
    moving.start("-w", "1", "--graceful-timeout", "2", env=env, ready=1)
    old = moving.worker_of(0)
    with connect_websocket(f"ws://127.0.0.1:{moving.port}") as websocket:
        moving.signal(signal.SIGHUP)
        moving.wait_logged("draining")
        began = time.monotonic()
        while time.monotonic() - began < 1:
            websocket.send("who?")
            assert websocket.recv() == str(old)
        with pytest.raises(ConnectionClosedError) as closed:
            websocket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert "exited with code 0 after draining" in wait_drained(moving, old)
    assert (moving.directory / "disconnected").read_text() == "1012"
    assert moving.logged("ERROR|Traceback|cancelling") == []


def test_a_websocket_that_ends_by_itself_delays_nothing(moving: Server) -> None:
    moving.start("-w", "1", ready=1)
    old = moving.worker_of(0)
    with connect_websocket(f"ws://127.0.0.1:{moving.port}") as websocket:
        moving.signal(signal.SIGHUP)
        moving.wait_logged("draining")
        websocket.send("who?")
        assert websocket.recv() == str(old)
    assert "after draining for 0." in wait_drained(moving, old)


# --- at the end of the server ---


@pytest.mark.quiet
@pytest.mark.parametrize("workers", [1, 3])
def test_websockets_are_told_at_once(moving: Server, workers: int) -> None:
    moving.start("-w", str(workers), ready=workers)
    with contextlib.ExitStack() as stack:
        url = f"ws://127.0.0.1:{moving.port}"
        websockets = [stack.enter_context(connect_websocket(url)) for _ in range(3)]
        began = time.monotonic()
        moving.signal(signal.SIGTERM)
        for websocket in websockets:
            with pytest.raises(ConnectionClosedError) as closed:
                websocket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
    assert moving.wait_exit() == 0
    assert time.monotonic() - began < 2


@pytest.mark.quiet
def test_shutdown_delay_changes_nothing_until_it_is_over(moving: Server, connect: Connect) -> None:
    moving.start("-w", "2", env={"MULTICORE_SHUTDOWN_DELAY": "1"}, ready=2)
    connection = connect(moving.port)
    moving.signal(signal.SIGTERM)
    moving.wait_logged("still answering")
    began = time.monotonic()
    while time.monotonic() - began < 0.7:
        stays(connection)
        stays(connect(moving.port))
    connection.send(request("/hold"))
    wait_for((moving.directory / "held").exists)
    moving.wait_logged("draining", 2)
    moving.wait_logged("exited with code 0")  # the other one: by now both have heard of it
    moving.write("release", "")
    assert connection.answer().is_last
    assert connection.ends()
    assert moving.wait_exit() == 0


@pytest.mark.parametrize(("workers", "scheduling"), [(1, "least"), (2, "least"), (1, "shared")])
def test_what_the_kernel_holds_is_answered(
    make_server: Callable[..., Server], connect: Connect, workers: int, scheduling: str
) -> None:
    """Connections that arrive while all workers are blocked, and before the server is told to end."""
    env = {"MULTICORE_SCHEDULING": scheduling}
    server = make_server(WSGI).start("-w", str(workers), "--graceful-timeout", "10", env=env, ready=workers)
    blocked = [connect(server.port).send(request("/hold")) for _ in range(workers)]
    wait_for((server.directory / "held").exists)
    time.sleep(0.1)  # until each is at it
    waiting = [connect(server.port).send(request(f"/{number}")) for number in range(20)]
    server.signal(signal.SIGTERM)
    time.sleep(0.2)
    server.write("release", "")
    for connection in [*blocked, *waiting]:
        answer = connection.answer()
        assert (answer.status, answer.is_last) == (200, True)
        assert connection.ends()
    assert server.wait_exit() == 0


# --- all at once ---


def test_reloads_cut_nothing(moving: Server, connect: Connect) -> None:
    """Kept-alive and new connections, without a second try, while the workers change."""
    moving.start("-w", "2", ready=2)
    failures: list[Exception] = []
    done = threading.Event()

    def work(keep: bool) -> None:
        connection = connect(moving.port)
        try:
            while not done.is_set():
                if not keep:
                    connection.close()
                    connection = connect(moving.port)
                assert not ask(connection).is_last
        except (OSError, AssertionError, ValueError) as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        hup(moving)
    os.kill(moving.worker_of(0), signal.SIGTERM)
    moving.wait_logged("exited with code 0 after draining", 7)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
