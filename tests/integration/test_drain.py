"""A worker that is told to go: nothing that it has begun to read is cut within graceful_timeout.

Here connections have nowhere to move to (`test_migration` is about that): the server ends, or it is TLS.
"""

from __future__ import annotations

import functools
import re
import signal
import ssl
import time

import pytest

from tests.support.draining import PROTOCOLS, TERM_ARBITER, TERM_WORKER, drain
from tests.support.moving_connections import BIG, wait_drained
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer


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
    assert begun.headers["content-length"] == str(BIG)

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
    slow.read(BIG)
    assert re.search(r"exited with code 0 after draining", wait_drained(server, pid))
    if how == TERM_ARBITER:
        assert server.wait_exit() == 0
    else:
        assert connected().send(request("/again")).answer().body == b"/again"


@pytest.mark.quiet
@pytest.mark.parametrize("http", PROTOCOLS)
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
    assert "code 0" in wait_drained(server, pid)


@pytest.mark.quiet
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
    assert "code 0" in wait_drained(server, pid)


@pytest.mark.quiet
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
    assert "code 0" in wait_drained(server, pid)
    assert (server.directory / "background").exists()
