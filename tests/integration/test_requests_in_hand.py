"""What a worker was doing: told at its end, and by a verb while it does it."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support.addresses import free_port
from tests.support.command_line import Operator
from tests.support.server import Server
from tests.support.waiting import wait_for

ASGI = """
import asyncio, os, signal, time

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path.startswith("/slow"):
        await asyncio.sleep(60)
    elif path == "/exit":
        os._exit(7)
    elif path == "/segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif path == "/blocked":
        time.sleep(60)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
WSGI = """
import os, signal, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/slow") or path == "/blocked":
        time.sleep(60)
    elif path == "/exit":
        os._exit(7)
    elif path == "/segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
KINDS = pytest.mark.parametrize("source", [ASGI, WSGI], ids=["asgi", "wsgi"])


@contextmanager
def asking(server: Server, *paths: str, **options: Any) -> Iterator[None]:
    """Clients whose requests are in progress until the worker ends."""

    def ask(path: str) -> None:
        with pytest.raises(httpx.TransportError):
            server.get(path, timeout=60, **options)

    clients = [threading.Thread(target=ask, args=(path,)) for path in paths]
    for client in clients:
        client.start()
    yield
    for client in clients:
        client.join()


@KINDS
@pytest.mark.parametrize(
    ("path", "how"), [("/exit", "exited with code 7"), ("/segfault", "was killed by SIGSEGV")]
)
def test_an_unplanned_end_is_logged_with_what_was_in_hand(
    server: Server, operator: Operator, source: str, path: str, how: str
) -> None:
    port = free_port()
    server.write("app.py", source)
    server.start("-w", "1", env={**operator.env, "MULTICORE_METRICS_BIND": f"127.0.0.1:{port}"}, ready=1)
    with asking(server, f"{path}?token=secret"):
        pass
    server.wait_logged(
        rf"{how} after .* s with 1 request in progress; restarting at once; in progress: GET {path} for"
    )
    assert "secret" not in server.log
    public = wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/status").json(), "the monitor")
    (event,) = (it for it in public["events"] if it["kind"] == "exited")
    assert event["text"].endswith("with 1 request in progress; restarting at once")
    assert (event["in_hand"], path in json.dumps(public)) == ("", False)
    samples = f"http://127.0.0.1:{port}/samples"
    marks = wait_for(lambda: httpx.get(samples).json()["marks"], "the mark of the end")
    assert how in marks[0][3]
    assert path not in marks[0][3]
    assert f"in progress: GET {path} for" in operator.run("events").stdout


def test_the_oldest_come_first_and_the_rest_is_counted(server: Server, operator: Operator) -> None:
    server.write("app.py", ASGI)
    server.start("-w", "1", env=operator.env, ready=1)
    assert server.get("/").text == "ok"
    assert operator.json("requests") == []
    with asking(server, "/slow/1"):
        wait_for(lambda: len(operator.json("requests")) == 1)
        with asking(server, *(f"/slow/{number}" for number in range(2, 41))):
            wait_for(lambda: len(operator.json("requests")) == 32)
            assert operator.json("requests")[0]["path"] == "/slow/1"
            wait_for(lambda: "and 8 more" in operator.run("requests").stdout)
            os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_logged(
        r"with 40 requests in progress; .*; in progress: GET /slow/1 for .* s, .* \(and 37 more\)"
    )


@KINDS
def test_the_verb_shows_a_blocked_worker_s_request(server: Server, operator: Operator, source: str) -> None:
    server.write("app.py", source)
    server.start("-w", "2", env=operator.env, ready=2)
    with asking(server, "/blocked"):
        wait_for(lambda: operator.json("requests"))
        (found,) = operator.json("requests")
        assert (found["method"], found["path"], found["client"]) == ("GET", "/blocked", "127.0.0.1")
        instance = str(found["instance"])
        line = rf"^ *[\d.]+m?s +{instance} +GET +/blocked +127.0.0.1$"
        assert re.search(line, operator.run("requests", instance).stdout, re.MULTILINE)
        assert "/blocked" not in operator.run("requests", str(1 - int(instance))).stdout
        os.kill(server.worker_of(int(instance)), signal.SIGKILL)


@KINDS
def test_the_client_is_the_one_that_a_trusted_proxy_names(
    server: Server, operator: Operator, source: str
) -> None:
    server.write("app.py", source)
    server.start("-w", "1", "--threads", "4" if source is WSGI else "1", env=operator.env, ready=1)
    with asking(server, "/slow/1"):
        wait_for(lambda: len(operator.json("requests")) == 1)
        with asking(server, "/slow/2", headers={"X-Forwarded-For": "203.0.113.9"}):
            wait_for(lambda: len(operator.json("requests")) == 2)
            clients = [it["client"] for it in operator.json("requests")]
            assert clients == ["127.0.0.1", "203.0.113.9"]
            os.kill(server.worker_of(0), signal.SIGKILL)


def test_a_hang_names_its_request(server: Server) -> None:
    server.write("app.py", WSGI)
    server.start("-w", "1", "--timeout", "1", ready=1)
    with asking(server, "/blocked"):
        pass
    server.wait_logged("in progress: GET /blocked for")
