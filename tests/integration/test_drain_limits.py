"""How long a worker may drain, what it does at its end, and a load that notices nothing."""

from __future__ import annotations

import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import final

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as connect_websocket

from tests.support.apps import PLAIN, source
from tests.support.draining import PROTOCOLS, drain, listens
from tests.support.moving_connections import wait_drained
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer
from tests.support.waiting import wait_for


@pytest.mark.parametrize("http", PROTOCOLS)
def test_longer_than_graceful_timeout_is_cancelled(start: MakeServer, connect: Connect, http: str) -> None:
    server = start("--graceful-timeout", "1", http=http)
    long = connect(server.port).send(request("/hold"))
    half = connect(server.port).send(b"GET /half-head HT")
    pid = drain(server)
    answer = long.answer()
    assert (answer.status, answer.is_last) == (500, True)
    assert half.ends()
    assert server.wait_logged(
        rf"pid={pid} requests not done after 1 s \(graceful_timeout\): 1; cancelling them"
    )
    assert "exited with code 0 after draining for 1." in wait_drained(server, pid)
    assert (server.directory / "shut").read_text() == str(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_thread_that_does_not_end_is_not_waited_for(
    make_server: MakeServer, connect: Connect, number: signal.Signals
) -> None:
    server = make_server(source("connections_wsgi"))
    server.write("gunicorn.conf.py", source("hooks"))
    server.start("-w", "1", "--threads", "2", "--graceful-timeout", "1", ready=1)
    stuck = connect(server.port).send(request("/stuck"))
    wait_for((server.directory / "held").exists)
    pid = server.worker_of(0)
    server.signal(number)
    assert stuck.answer().status == 500
    assert "exited with code 0" in wait_drained(server, pid)
    noted = (server.directory / "hooks.log").read_text().splitlines()
    assert [line for line in noted if line.startswith("worker_exit")] == [f"worker_exit {pid} 1 {pid}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_lifespan_shutdown_runs(start: MakeServer, connect: Connect, number: signal.Signals) -> None:
    server = start()
    connect(server.port).send(request("/hold"))
    wait_for((server.directory / "held").exists)
    pid = server.worker_of(0)
    if number is signal.SIGTERM:
        server.write("release", "")
    server.signal(number)
    assert server.wait_exit(5) == 0
    assert (server.directory / "shut").read_text() == str(pid)


def test_a_lifespan_shutdown_that_takes_too_long_is_left(start: MakeServer, connect: Connect) -> None:
    server = start("--graceful-timeout", "1", SHUTDOWN="30")
    pid = server.worker_of(0)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(5) == 0
    assert server.logged(rf"pid={pid} the app's lifespan shutdown took too long")
    assert "code 0" in wait_drained(server, pid)


@pytest.mark.parametrize("ws", ["auto", "wsproto"])
def test_websockets_get_1012(start: MakeServer, ws: str) -> None:
    server = start(UVICORN_WS=ws)
    url = f"ws://127.0.0.1:{server.port}"
    with connect_websocket(url) as websocket, ThreadPoolExecutor() as pool:
        websocket.send("hello")
        assert websocket.recv() == "hello"
        slow = pool.submit(connect_websocket, f"{url}/slow")
        wait_for((server.directory / "handshaking").exists)
        pid = drain(server)
        with pytest.raises(ConnectionClosedError) as closed:
            websocket.recv()
        server.write("accept", "")  # a handshake that has begun is a request that has begun
        with slow.result() as late, pytest.raises(ConnectionClosedError) as closed_late:
            late.recv()
    for error in (closed, closed_late):
        assert error.value.rcvd is not None
        assert error.value.rcvd.code == 1012
    assert "code 0" in wait_drained(server, pid)
    assert (server.directory / "disconnected").read_text() == "1012"


APPS = {"asgi": "app:app", "wsgi": "app:wsgi"}


@pytest.mark.parametrize("interface", APPS)
@pytest.mark.parametrize("keep", [True, False], ids=["kept-alive", "close"])
def test_no_request_is_cut_under_load(make_server: MakeServer, interface: str, keep: bool) -> None:
    server = make_server(PLAIN)
    limits = ["--max-requests", "300", "--max-requests-jitter", "150"]
    server.start("-w", "2", "--keep-alive", "5", *limits, app=APPS[interface], ready=2)
    with Load(server.port, keep_alive=keep) as load:
        server.wait_logged(r"exited with code 0 after draining", 4)
        for done in (1, 2):
            server.signal(signal.SIGHUP)
            server.wait_logged("reload done", done)
    print(interface, "kept alive" if keep else "close", load)
    assert load.answered > 1000
    assert load.cut == 0


@final
class Load:
    """Clients that ask without pause and never try again, and count what they get.

    ``cut``: part of an answer had come. ``lost``: a connection was refused, or ended after a request was
    sent and before an answer; nobody can tell from here whether a worker had begun to read it.
    """

    def __init__(self, port: int, *, keep_alive: bool, clients: int = 8) -> None:
        self.port = port
        self.request = request("/", *([] if keep_alive else ["Connection: close"]))
        self.answered = self.cut = self.lost = 0
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._clients = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for client in self._clients:
            client.join()

    def __repr__(self) -> str:
        return f"<{self.answered} answered, {self.cut} cut, {self.lost} lost>"

    def _ask(self) -> None:
        connection: socket.socket | None = None
        while not self._done.is_set():
            data = b""
            try:
                connection = connection or socket.create_connection(("127.0.0.1", self.port), 10)
                if self._has_ended(connection):
                    connection.close()
                    connection = None
                    continue
                connection.sendall(self.request)
                while not data.endswith(b"\r\n\r\nok") and (block := connection.recv(4096)):
                    data += block
            except OSError:
                pass
            self._count(data)
            if connection is not None and (
                b"connection: close" in data.lower() or not data.endswith(b"\r\n\r\nok")
            ):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    @staticmethod
    def _has_ended(connection: socket.socket) -> bool:
        """An idle connection that was closed before anything was sent on it is nobody's failure."""
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable)

    def _count(self, data: bytes) -> None:
        with self._lock:
            if data.endswith(b"\r\n\r\nok"):
                self.answered += 1
            elif data:
                self.cut += 1
            else:
                self.lost += 1


def test_beyond_draining_limit_the_oldest_ends_early(start: MakeServer, connect: Connect) -> None:
    server = start("--graceful-timeout", "60", "--env", "MULTICORE_DRAINING_LIMIT=1")
    held = []
    for generation in (1, 2):
        held.append(connect(server.port).send(request("/hold")))
        wait_for((server.directory / "held").exists)
        (server.directory / "held").unlink()
        old = server.worker_of(0)
        server.signal(signal.SIGHUP)
        server.wait_logged(rf"instance=0 gen={generation} pid=\d+ draining \(reload\)")
        wait_for(lambda: not listens(old), "the old worker takes nothing new")  # noqa: B023 - called at once
    server.wait_logged(r"instance=0 gen=1 pid=\d+ ending it early: more than 1 old workers? .*draining_limit")
    assert held[0].answer().status == 500
    (server.directory / "release").touch()
    assert held[1].answer().body == b"/hold"
