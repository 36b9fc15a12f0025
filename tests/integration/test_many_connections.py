"""Reloads under many kept-alive connections: none fails, none is closed, whatever keeps the siblings busy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Server, wait_for

pytestmark = pytest.mark.integration

CONNECTIONS = 1500
ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds


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
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("app", ["asgi", "wsgi"])
def test_reloads_close_no_connection_though_a_sibling_is_busy(server: Server, app: str, loop: str) -> None:
    server.provide("many")
    options = ["-w", "2", "--keep-alive", "300", "--graceful-timeout", "60", "--timeout", "120"]
    server.start(*options, app=f"many:{app}", ready=2, env={"UVICORN_LOOP": loop})
    clients = Clients(server.port, CONNECTIONS)
    busy = [Busy(server.port) for _ in range(2)]
    try:
        for _ in range(2):
            old = [psutil.Process(pid) for pid in server.workers()]
            os.kill(server.pid, signal.SIGHUP)
            gone = lambda old=old: not any(worker.is_running() for worker in old)  # noqa: E731
            wait_for(gone, "the old workers end", PATIENCE)
    finally:
        for each in busy:
            each.end()
        found = clients.end()
    assert found["answered"] > CONNECTIONS
    assert (found["failed"], found["closed_idle"]) == (0, 0)
