"""A client whose requests are the same in each run: so many, on so many connections, in lockstep.

Each round sends one request on each connection, then reads all the responses. How many of them the worker
finds at once, and whether a new connection already has its request, would depend on what else the machine
does: so the worker is stopped until all are there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

from tests.benchmarks.common import LOCAL, REQUEST, REQUEST_CLOSE, poll

PATIENCE = 60.0  # seconds


def requests(port: int, worker: int, number: int, connections: int, *, close: bool) -> None:
    """Send so many requests, and read their responses; ``close``: each on a connection of its own."""
    request = REQUEST_CLOSE if close else REQUEST
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []
        for _ in range(number // connections):
            with stopped(worker):
                if close or not clients:
                    clients = [stack.enter_context(_connect(port)) for _ in range(connections)]
                for client in clients:
                    client.sendall(request)
            for client in clients:
                _read(client)
                if close:  # at once: gthread waits for it
                    client.close()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process, once it has nothing to do, stands still meanwhile."""
    poll(lambda: _states(pid) == {"S"}, interval=0)
    os.kill(pid, signal.SIGSTOP)
    try:
        poll(lambda: _states(pid) == {"T"}, interval=0)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> set[str]:
    """Of its threads (proc(5)): ``S`` waits for something, ``T`` is stopped."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def _connect(port: int) -> socket.socket:
    return socket.create_connection((LOCAL, port), timeout=PATIENCE)


def _read(client: socket.socket) -> None:
    with HTTPResponse(client) as response:
        response.begin()
        if response.status != 200 or not response.read():
            sys.exit(f"benchmark: a response with status {response.status}")
