"""WSGI apps and clients that read slowly or not at all: they wait for themselves, not the others for them."""

from __future__ import annotations

import contextlib
import signal
import ssl
import time

import pytest

from tests.support.draining import listens
from tests.support.parsers import PARSERS
from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

LARGE = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/small":
        start_response("200 OK", [])
        return [b"small"]
    environ["wsgi.input"].read()
    count = int(environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Length", str(count * 100_000))])
    return (bytes([number % 251]) * 100_000 for number in range(count))

def before_body(environ, start_response):
    if environ.get("HTTP_AUTHORIZATION"):
        return None
    start_response("401 Unauthorized", [])
    return [b"who are you?"]

app.before_body = before_body
"""
FEW, MANY = 100, 400  # blocks of a response; more than the buffers of a connection take

inline_and_threads = pytest.mark.parametrize("threads", ["1", "2"], ids=["inline", "threads"])


def body(blocks: int) -> bytes:
    return b"".join(bytes([number % 251]) * 100_000 for number in range(blocks))


def slow(connect: Connect, server: Server, blocks: int, tls: ssl.SSLContext | None = None) -> Connection:
    return connect(server.port, tls=tls, buffer=4096).send(request(f"/{blocks}"))


def small(connect: Connect, server: Server, tls: ssl.SSLContext | None = None) -> float:
    """Return how long a request takes."""
    began = time.monotonic()
    assert connect(server.port, tls=tls).send(request("/small")).answer().body == b"small"
    return time.monotonic() - began


@inline_and_threads
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_clients_that_do_not_read_stop_nobody(
    make_server: MakeServer, connect: Connect, trusting: ssl.SSLContext, threads: str, loop: str, tls: bool
) -> None:
    options = ["--certfile", "../cert.pem", "--keyfile", "../key.pem"] if tls else []
    # The first of them waits for the others to be read, which may take longer than the 2 s of the default.
    options += ["--keep-alive", "30"]
    server = make_server(LARGE).start("-w", "2", "--threads", threads, *options, ready=2,
                                      env={"UVICORN_LOOP": loop})  # fmt: skip
    context = trusting if tls else None
    stuck = [slow(connect, server, FEW, context) for _ in range(8)]
    assert small(connect, server, context) < 10  # send_timeout is 60
    for client in stuck:
        assert client.answer().body == body(FEW)
    assert stuck[0].send(request("/small")).answer().body == b"small"


@inline_and_threads
def test_a_reload_waits_for_a_client_that_reads_slowly(
    make_server: MakeServer, connect: Connect, threads: str
) -> None:
    server = make_server(LARGE).start("-w", "1", "--threads", threads, ready=1)
    client = slow(connect, server, MANY)
    client.head()
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    assert client.read(MANY * 100_000) == body(MANY)
    assert client.send(request("/small")).answer().body == b"small"  # by the new worker
    wait_for(lambda: len(server.workers()) == 1, "the old worker's end")


def test_the_end_of_the_server_waits_for_a_client_that_reads_slowly(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(LARGE).start("-w", "1", ready=1)
    client = slow(connect, server, MANY)
    client.head()
    small(connect, server)  # all of the response is the server's by now
    server.signal(signal.SIGTERM)
    server.wait_logged("draining|Handling signal: term")
    assert client.read(MANY * 100_000) == body(MANY)
    assert client.ends()
    assert server.wait_exit() == 0


@inline_and_threads
def test_a_client_that_expects_to_be_asked_is_answered_before_its_body(
    make_server: MakeServer, connect: Connect, threads: str
) -> None:
    server = make_server(LARGE).start("-w", "1", "--threads", threads, ready=1)
    head = ["Expect: 100-continue", "Content-Length: 200000"]
    refused = connect(server.port).send(request("/1", *head, method="POST"))
    assert refused.head().status == 401
    asked = connect(server.port).send(request("/1", *head, "Authorization: me", method="POST"))
    assert asked.head().status == 100
    assert asked.send(b"x" * 200_000).answer().body == body(1)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("http", PARSERS)
def test_an_answer_that_comes_early_is_read_by_a_client_that_still_sends(
    make_server: MakeServer, connect: Connect, loop: str, http: str
) -> None:
    """Also where the server ends, and so closes each connection with its answer."""
    server = make_server(LARGE)
    server.start("-w", "1", ready=1, env={"UVICORN_LOOP": loop, "UVICORN_HTTP": http})
    head = request("/1", "Content-Length: 50000000", method="POST")
    kept = [connect(server.port).send(head[:-10]) for _ in range(3)]
    worker = server.worker_of(0)
    server.signal(signal.SIGTERM)
    wait_for(lambda: not listens(worker), "the worker has heard")
    for client in kept:
        client.send(head[-10:] + b"x" * 100_000)
        with contextlib.suppress(OSError):  # it takes no more
            for _ in range(20):
                client.send(b"x" * 100_000)
        answer = client.answer()
        assert (answer.status, answer.body, answer.is_last) == (401, b"who are you?", True)
        client.close()
    assert server.wait_exit() == 0
