"""Many kept-alive connections: a reload closes none and fails none, a lack of descriptors kills nobody."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.apps import source
from tests.support.server import MakeServer
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.quiet]

CONNECTIONS = 1500
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (230, 230))
os.execv(sys.argv[1], sys.argv[1:])
"""


class Clients:
    """Kept-alive connections from a process of their own, each asking every 1 to 3 s."""

    def __init__(self, port: int, count: int) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.many_clients", port, count, 0, 1, 3]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "open\n"

    def end(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(self.process.communicate("end\n", timeout=PATIENCE)[0])
        return found


class Busy:
    """A client that asks on and on for what takes its worker's time."""

    def __init__(self, port: int) -> None:
        script = (
            "import socket, sys\n"
            "while True:\n"
            "    try:\n"
            f"        client = socket.create_connection(('127.0.0.1', {port}), 30)\n"
            "        while True:\n"
            "            client.sendall(b'GET /pause HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
            "            if not client.recv(4096):\n"
            "                break\n"
            "    except OSError:\n"
            "        pass\n"
        )
        self.process = subprocess.Popen([sys.executable, "-c", script])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("app", "loop"), [("asgi", "uvloop"), ("wsgi", "uvloop"), ("asgi", "asyncio")])
def test_reloads_close_no_connection_though_siblings_are_busy(
    make_server: MakeServer, app: str, loop: str
) -> None:
    server = make_server(source("many"))
    options = ["-w", "2", "--keep-alive", "300", "--graceful-timeout", "60", "--timeout", "120"]
    server.start(*options, app=f"app:{app}", ready=2, env={"UVICORN_LOOP": loop})
    clients = Clients(server.port, CONNECTIONS)
    asked_again = time.monotonic() + 4  # all of them
    busy = [Busy(server.port) for _ in range(2)]
    try:
        for _ in range(2):
            old = [psutil.Process(pid) for pid in server.workers()]
            server.signal(signal.SIGHUP)
            for worker in old:
                worker.wait(PATIENCE)
        wait_for(lambda: time.monotonic() > asked_again, "the pauses between two requests")
    finally:
        for each in busy:
            each.end()
        found = clients.end()
    assert found["answered"] > CONNECTIONS
    assert (found["failed"], found["closed_idle"]) == (0, 0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_lack_of_descriptors_kills_no_worker(make_server: MakeServer, loop: str) -> None:
    server = make_server()
    limited = [
        sys.executable,
        "-c",
        LIMITED,
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        "multicore_server.Worker",
    ]
    options = ["-w", "2", "--timeout", "3", "--keep-alive", "300"]
    server.start(*options, command=limited, ready=2, env={"UVICORN_LOOP": loop})
    before = server.workers()
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
    for client in clients:
        with contextlib.suppress(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    server.wait_logged("Too many open files")
    ends = time.monotonic() + 5  # longer than the timeout
    wait_for(lambda: time.monotonic() > ends or server.workers() != before, "the timeout")
    assert server.workers() == before
    assert len(server.log.splitlines()) < 30
    for client in clients:
        client.close()
    wait_for(lambda: answers(server.port), "an answer, once there are descriptors")


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return client.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False
