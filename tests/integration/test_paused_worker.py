"""A worker that was paused, or starved, judges no client by the time in which it did not look."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.support.draining import drain
from tests.support.moving_connections import wait_drained
from tests.support.parsers import PARSERS
from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer, Server

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
HTTP = pytest.mark.parametrize("http", PARSERS)


def used(server: Server, connect: Connect) -> Connection:
    connection = connect(server.port).send(request("/1"))
    assert connection.answer().body == b"/1"
    return connection


def pause(pid: int, client: Connection, seconds: float) -> None:
    """Pause the worker, which meanwhile gets a request."""
    os.kill(pid, signal.SIGSTOP)
    try:
        client.send(request("/2"))
        time.sleep(seconds)  # there is nothing to be polled in a process that stands still
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.quiet  # it is to be paused within the half second of the linger
@LOOPS
@HTTP
def test_in_a_drain(start: MakeServer, connect: Connect, http: str, loop: str) -> None:
    server = start(http=http, loop=loop)
    client = used(server, connect)
    pid = drain(server)
    pause(pid, client, 1)
    answer = client.answer()
    assert (answer.body, answer.is_last) == (b"/2", True)
    assert "code 0" in wait_drained(server, pid)


@LOOPS
@HTTP
def test_when_the_keep_alive_timeout_comes(start: MakeServer, connect: Connect, http: str, loop: str) -> None:
    server = start("--keep-alive", "2", http=http, loop=loop)
    client = used(server, connect)
    pause(server.worker_of(0), client, 2.5)
    assert client.answer().body == b"/2"
    assert client.ends()  # an idle one is closed as before
