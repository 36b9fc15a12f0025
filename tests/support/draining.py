"""How to tell a worker to go, and see that it has heard."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from tests.support.parsers import PARSERS
from tests.support.raw_client import Connection, request
from tests.support.server import Server
from tests.support.waiting import wait_for

TERM_WORKER = "TERM to the worker"
TERM_ARBITER = "TERM to the arbiter"

PROTOCOLS = {http: {"UVICORN_HTTP": http} for http in PARSERS}
LOOPS = {"uvloop": {"UVICORN_LOOP": "uvloop"}, "asyncio": {"UVICORN_LOOP": "asyncio"}}


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
