"""What people who come from gunicorn have: statsd, hooks around requests, Flask-Sock."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from tests.support.apps import PLAIN, source
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.integration


# --- statsd


class Statsd:
    """What arrives over UDP."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(PATIENCE)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"

    def until(self, text: str) -> list[str]:
        """The packets up to this one; the test fails where it does not come."""
        found: list[str] = []
        while text not in found:
            found.append(self.socket.recv(4096).decode())
        return found


@pytest.fixture
def statsd() -> Iterator[Statsd]:
    made = Statsd()
    yield made
    made.socket.close()


def test_statsd_hears_of_the_workers(make_server: MakeServer, statsd: Statsd) -> None:
    server = make_server(PLAIN)
    server.start("-w", "2", "--statsd-host", statsd.address, "--statsd-prefix", "web", ready=2)
    statsd.until("web.gunicorn.workers:2|g")
    server.signal(signal.SIGTTIN)
    statsd.until("web.gunicorn.workers:3|g")
    server.get()
    packets = statsd.until("web.gunicorn.request.status.200:1|c|@1.0")
    assert "web.gunicorn.requests:1|c|@1.0" in packets
    assert not [packet for packet in packets if "backlog" in packet]


def test_statsd_hears_of_the_backlog(make_server: MakeServer, statsd: Statsd) -> None:
    server = make_server(PLAIN)
    server.start("-w", "1", "--statsd-host", statsd.address, "--enable-backlog-metric", ready=1)
    worker = server.worker_of(0)
    os.kill(worker, signal.SIGSTOP)
    try:
        with socket.create_connection(("127.0.0.1", server.port)):
            statsd.until("gunicorn.backlog:1|h")  # gunicorn before 26 does not send a 0
    finally:
        os.kill(worker, signal.SIGCONT)


# --- hooks

HOOKS = """
def pre_request(worker, req):
    worker.log.info("BEFORE %s %s %s %s", req.method, req.path, req.query, dict(req.headers)["X-A"])
    if req.path == "/refused":
        raise RuntimeError("refused")

def post_request(worker, req, environ, resp):
    worker.log.info("AFTER %s %s %s", environ["PATH_INFO"], resp.status, resp.status_code)
    raise RuntimeError("mine")
"""


@pytest.mark.parametrize("app", ["app:app", "app:wsgi"])
@pytest.mark.parametrize("more", [["--threads", "1"], ["--threads", "4", "--access-logfile", "-"]])
def test_hooks_around_requests(make_server: MakeServer, app: str, more: list[str]) -> None:
    server = make_server(PLAIN)
    server.write("conf.py", HOOKS)
    server.start("-w", "1", "-c", "conf.py", *more, app=app, ready=1)
    assert server.get("/x?q=1", headers={"x-a": "b"}).text == "ok"
    assert server.get("/refused", headers={"x-a": "b"}).status_code == 500
    server.wait_logged("BEFORE GET /x q=1 b$")
    server.wait_logged("AFTER /x 200 OK 200$")
    assert server.logged("the post_request hook failed")
    assert not server.logged("no effect.*_request")
    assert len(server.logged(r'"GET /x\?q=1 HTTP/1.1" 200')) == ("-" in more)


# --- Flask-Sock


@pytest.mark.parametrize("threads", ["1", "4"])
def test_flask_sock_is_told_what_to_use(make_server: MakeServer, threads: str) -> None:
    pytest.importorskip("flask_sock")
    server = make_server(source("flask_sock_echo"))
    server.start("-w", "1", "--threads", threads, ready=1)
    for _ in range(2):
        with pytest.raises(InvalidStatus), websockets.sync.client.connect(f"{ws(server)}/echo"):
            pass
    (line,) = server.logged("WebSocket")
    assert re.search(r"\[WARNING\] a WSGI app got a WebSocket request, .* Flask-Sock .* -k gthread$", line)
    wait_for(lambda: server.get().text == "ok", "an answer")


def ws(server: Server) -> str:
    return server.url.replace("http", "ws")
