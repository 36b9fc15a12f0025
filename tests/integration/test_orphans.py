"""The arbiter is killed: workers that boot end at once, those that hang let go of the address."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

BOOTS = """
import pathlib, time

pathlib.Path("loading").touch()
time.sleep(60)

async def app(scope, receive, send):
    pass
"""

HANGS = """
import pathlib, time

async def app(scope, receive, send):
    if scope["type"] == "http":
        pathlib.Path("hung").touch()
        time.sleep(60)
"""


# The test knows the helper's pid by the file.
HELPED = """
import multiprocessing, os, pathlib, time

def help():
    pathlib.Path("unfinished").write_text(str(os.getpid()))
    os.rename("unfinished", "helper")
    time.sleep(60)

def on_worker_ready(server, worker):
    multiprocessing.get_context("fork").Process(target=help).start()
"""


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def kill(server: Server) -> list[psutil.Process]:
    """Kill the arbiter; its workers."""
    workers = [psutil.Process(pid) for pid in server.workers()]
    server.signal(signal.SIGKILL)
    server.wait_exit()
    return workers


def wait_gone(workers: list[psutil.Process], seconds: float) -> None:
    _, alive = psutil.wait_procs(workers, timeout=seconds)
    assert alive == []


def wait_file(server: Server, name: str) -> None:
    path: Path = server.directory / name
    wait_for(path.exists, name)


def test_a_boot_ends_with_its_arbiter(make_server: MakeServer) -> None:
    server = make_server(BOOTS)
    server.start("-w", "2")
    wait_file(server, "loading")
    wait_gone(kill(server), 3)
    assert is_free(server.port)


def test_a_process_that_a_hook_has_forked_hides_the_end_of_the_arbiter_from_nobody(server: Server) -> None:
    conf = server.write("helped.py", HELPED)
    server.start("-w", "1", "-c", str(conf), ready=1)
    wait_file(server, "helper")
    helper = psutil.Process(int((server.directory / "helper").read_text()))
    try:
        workers = kill(server)
        wait_gone([worker for worker in workers if worker != helper], 5)
        assert helper.is_running()
        assert is_free(server.port)
    finally:
        helper.kill()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_hung_worker_lets_go_of_the_address_and_ends_after_graceful_timeout(
    make_server: MakeServer, loop: str
) -> None:
    server = make_server(HANGS)
    server.start("-w", "1", "--graceful-timeout", "5", ready=1, env={"UVICORN_LOOP": loop})
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_file(server, "hung")
        workers = kill(server)
        wait_for(lambda: is_free(server.port), "the address", 4)
        assert workers[0].is_running(), "it has its time"
        wait_gone(workers, 15)
