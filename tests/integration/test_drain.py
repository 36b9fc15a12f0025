"""A worker that is told to go: nothing that it has begun to read is cut within graceful_timeout.

Here connections have nowhere to move to (`test_migration` is about that): the server ends, or it is TLS.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as connect_websocket

from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

APP = '''
import asyncio, os, pathlib

BIG = bytes(50_000_000)

async def exists(name):
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)

async def body_of(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body

async def lifespan(receive, send):
    while True:
        message = await receive()
        name = message["type"]
        if name == "lifespan.shutdown":
            pathlib.Path("shut").write_text(str(os.getpid()))
            if "SHUTDOWN" in os.environ:
                await asyncio.sleep(float(os.environ["SHUTDOWN"]))
        await send({"type": name + ".complete"})
        if name == "lifespan.shutdown":
            return

async def websocket(scope, receive, send):
    await receive()
    if scope["path"] == "/slow":
        pathlib.Path("handshaking").touch()
        await exists("accept")
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            pathlib.Path("disconnected").write_text(str(message["code"]))
            return
        await send({"type": "websocket.send", "text": message["text"]})

async def app(scope, receive, send):
    if scope["type"] != "http":
        await (lifespan(receive, send) if scope["type"] == "lifespan" else websocket(scope, receive, send))
        return
    path = scope["path"]
    if path == "/background":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        await exists("release")
        pathlib.Path("background").touch()
        return
    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await exists("release")
        await send({"type": "http.response.body", "body": b"last"})
        return
    if path == "/hold":
        pathlib.Path("held").touch()
        await exists("release")
    body = BIG if path == "/big" else await body_of(receive) if path == "/echo" else path.encode()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})
'''  # fmt: skip

TERM_WORKER = "TERM to the worker"
TERM_ARBITER = "TERM to the arbiter"

ENGINES = {"httptools": {"UVICORN_HTTP": "httptools"}, "h11": {"UVICORN_HTTP": "h11"}}
LOOPS = {"uvloop": {"UVICORN_LOOP": "uvloop"}, "asyncio": {"UVICORN_LOOP": "asyncio"}}


@pytest.fixture
def start(make_server: Callable[..., Server]) -> Callable[..., Server]:
    def start(*options: str, http: str = "httptools", loop: str = "uvloop", **env: str) -> Server:
        server = make_server(APP)
        server.start(
            "-w", "1", "--keep-alive", "20", *options, env={**ENGINES[http], **LOOPS[loop], **env}, ready=1
        )
        return server

    return start


def drain(server: Server, how: str = TERM_ARBITER, probe: Connection | None = None) -> int:
    """Tell the only worker to go, and return its pid when it has heard."""
    pid = server.worker_of(0)
    probe = probe or Connection(server.port)
    with contextlib.closing(probe):  # when this is answered, it has read all that came before
        assert probe.send(request("/")).answer().body == b"/"
    if how == TERM_WORKER:
        os.kill(pid, signal.SIGTERM)
    else:
        server.signal(signal.SIGTERM)
    wait_for(lambda: not listens(pid), "the worker has closed its listener")
    return pid


def listens(pid: int) -> bool:
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return False
    return any(connection.status == psutil.CONN_LISTEN for connection in connections)


def wait_gone(server: Server, pid: int) -> str:
    return server.wait_logged(rf"pid={pid} (exited|was killed)")[0]


@pytest.mark.parametrize(
    ("how", "http", "loop", "tls"),
    [
        (TERM_ARBITER, "h11", "asyncio", False),
        (TERM_ARBITER, "h11", "uvloop", False),
        (TERM_ARBITER, "httptools", "asyncio", False),
        (TERM_ARBITER, "httptools", "uvloop", False),
        (TERM_WORKER, "httptools", "uvloop", True),
        (TERM_ARBITER, "httptools", "asyncio", True),
    ],
)
def test_all_that_has_begun_is_answered(
    start: MakeServer, connect: Connect, trusting: ssl.SSLContext, how: str, http: str, loop: str, tls: bool
) -> None:
    options = ["--certfile", "../cert.pem", "--keyfile", "../key.pem"] if tls else []
    server = start(*options, http=http, loop=loop)
    connected = functools.partial(connect, server.port, tls=trusting if tls else None)
    idle = connected().send(request("/before"))
    assert not idle.answer().is_last
    half_head = connected().send(b"GET /half-head HTTP/1.1\r\nHo")
    half_body = connected().send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
    pipelined = connected().send(request("/hold") + request("/second") + b"GET /third HT")
    slow = connected(buffer=4096).send(request("/big"))
    streamed = connected().send(request("/stream"))
    streamed.head()
    assert streamed.chunk() == b"first"
    long = connected().send(request("/hold"))
    begun = slow.head()
    assert begun.headers["content-length"] == "50000000"

    pid = drain(server, how, connected())
    half_body.send(b"56789")
    answer = half_body.answer()
    assert (answer.body, answer.is_last) == (b"0123456789", True)
    half_head.send(b"st: x\r\n\r\n")
    answer = half_head.answer()
    assert (answer.body, answer.is_last) == (b"/half-head", True)
    assert half_head.ends()
    assert half_body.ends()
    assert idle.ends()  # after the linger, while others are still busy

    server.write("release", "")
    assert streamed.chunk() == b"last"
    assert streamed.chunk() == b""
    answer = long.answer()
    assert (answer.body, answer.is_last) == (b"/hold", True)
    pipelined.send(b"TP/1.1\r\nHost: x\r\n\r\n")
    answers = [pipelined.answer() for _ in range(3)]
    assert [answer.body for answer in answers] == [b"/hold", b"/second", b"/third"]
    assert [answer.is_last for answer in answers] == [False, False, True]
    slow.read(50_000_000)
    assert re.search(r"exited with code 0 after draining", wait_gone(server, pid))
    if how == TERM_ARBITER:
        assert server.wait_exit() == 0
    else:
        assert connected().send(request("/again")).answer().body == b"/again"


@pytest.mark.parametrize("http", ENGINES)
def test_a_request_that_comes_during_the_linger_is_answered(
    start: MakeServer, connect: Connect, http: str
) -> None:
    server = start(http=http)
    idle = connect(server.port).send(request("/1"))
    idle.answer()
    pid = drain(server)
    answers = idle.send(request("/2") + request("/3"))
    second, third = answers.answer(), answers.answer()
    assert (second.body, second.is_last) == (b"/2", False)
    assert (third.body, third.is_last) == (b"/3", True)
    assert idle.ends()
    assert "code 0" in wait_gone(server, pid)


def test_a_response_begun_before_leaves_its_client_the_linger_too(
    start: MakeServer, connect: Connect
) -> None:
    server = start()
    streamed = connect(server.port).send(request("/stream"))
    streamed.head()
    streamed.chunk()
    idle = connect(server.port)
    pid = drain(server)
    assert idle.ends()  # the linger is over
    server.write("release", "")
    assert streamed.chunk() == b"last"
    assert streamed.chunk() == b""
    answer = streamed.send(request("/next")).answer()
    assert (answer.body, answer.is_last) == (b"/next", True)
    assert "code 0" in wait_gone(server, pid)


def test_nothing_in_hand_ends_at_once(start: MakeServer, connect: Connect) -> None:
    server = start()
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 1.5
    assert server.logged(r"exited with code 0 after draining for 0\.[0-4]")


def test_work_after_the_response_is_waited_for(start: MakeServer, connect: Connect) -> None:
    server = start()
    connection = connect(server.port).send(request("/background", "Connection: close"))
    connection.answer()
    pid = drain(server)
    assert connection.ends()
    server.write("release", "")
    assert "code 0" in wait_gone(server, pid)
    assert (server.directory / "background").exists()


@pytest.mark.parametrize("http", ENGINES)
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
    assert "exited with code 0 after draining for 1." in wait_gone(server, pid)
    assert (server.directory / "shut").read_text() == str(pid)


STUCK = """
import pathlib, time

def app(environ, start_response):
    pathlib.Path("held").touch()
    time.sleep(60)
"""

NOTE_EXIT = """
def worker_exit(server, worker):
    with open("exits", "a") as file:
        print(worker.pid, file=file)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_thread_that_does_not_end_is_not_waited_for(
    make_server: MakeServer, connect: Connect, number: signal.Signals
) -> None:
    server = make_server(STUCK)
    server.write("gunicorn.conf.py", NOTE_EXIT)
    server.start("-w", "1", "--threads", "2", "--graceful-timeout", "1", ready=1)
    stuck = connect(server.port).send(request())
    wait_for((server.directory / "held").exists)
    pid = server.worker_of(0)
    server.signal(number)
    assert stuck.answer().status == 500
    assert "exited with code 0" in wait_gone(server, pid)
    assert (server.directory / "exits").read_text() == f"{pid}\n"


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
    assert "code 0" in wait_gone(server, pid)


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
    assert "code 0" in wait_gone(server, pid)
    assert (server.directory / "disconnected").read_text() == "1012"


LOAD = {
    "asgi": '''
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})
''',
    "wsgi": '''
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
''',
}  # fmt: skip


@pytest.mark.parametrize("interface", LOAD)
@pytest.mark.parametrize("keep", [True, False], ids=["kept-alive", "close"])
def test_no_request_is_cut_under_load(make_server: MakeServer, interface: str, keep: bool) -> None:
    server = make_server(LOAD[interface])
    limits = ["--max-requests", "300", "--max-requests-jitter", "150"]
    server.start("-w", "2", "--keep-alive", "5", *limits, ready=2)
    with Load(server.port, keep_alive=keep) as load:
        server.wait_logged(r"exited with code 0 after draining", 4)
        for done in (1, 2):
            server.signal(signal.SIGHUP)
            server.wait_logged("reload done", done)
    print(interface, "kept alive" if keep else "close", load)
    assert load.answered > 1000
    assert load.cut == 0


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

    def __enter__(self) -> Load:  # noqa: PYI034 - Self is of Python 3.11
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
                while not data.endswith(b"\r\n\r\nhello") and (block := connection.recv(4096)):
                    data += block
            except OSError:
                pass
            self._count(data)
            if connection is not None and (
                b"connection: close" in data.lower() or not data.endswith(b"hello")
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
            if data.endswith(b"hello"):
                self.answered += 1
            elif data:
                self.cut += 1
            else:
                self.lost += 1
