"""A client that has sent its request and shuts its sending side."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from multicore_server.connections.spool import Spools
from tests.unit.strict.served import Event, Served, echo, run, seen, status

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


class Slow:
    """Answers when it is told to; says what has come after the request."""

    def __init__(self) -> None:
        self.go = Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seen.append("asked")
        await self.go.wait()
        await echo(scope, receive, send)


async def until(condition: Any) -> None:
    while not condition():  # `run` limits the time
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("requests", [1, 3])
def test_it_gets_its_responses(http: str, requests: int) -> None:
    app = Slow()

    async def test(served: Served) -> None:
        served.state.answers_half_closed = True
        client = await served.connect()
        await client.send(b"".join(POST + b"%02d" % number for number in range(requests)))
        client.end.shutdown(socket.SHUT_WR)
        await until(lambda: "asked" in seen)
        await asyncio.sleep(0.05)  # the end of what it sends is read meanwhile
        for number in range(requests):
            await until(lambda wanted=number + 1: seen.count("asked") == wanted)
            app.go.set()
        said = await client.receive()
        assert said.count(b"HTTP/1.1 200") == requests
        assert said.endswith(b"%02d" % (requests - 1))
        assert "disconnected" not in seen

    run(test, app, http)


def test_it_gets_what_it_has_not_taken_yet(http: str) -> None:
    size = 5_000_000

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": bytes(size // 10), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def test(served: Served) -> None:
        served.state.answers_half_closed = True
        served.state.spools = Spools()
        client = await served.connect()
        await client.send(POST + b"ab")
        await until(lambda: client.protocol.cycle is not None and client.protocol.cycle.response_complete)
        client.end.shutdown(socket.SHUT_WR)
        assert len(await client.receive()) > size

    run(test, app, http)


def test_an_app_of_uvicorns_is_told_that_it_has_left(http: str) -> None:
    app = Slow()

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(POST + b"ab")
        await until(lambda: "asked" in seen)
        client.end.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""
        app.go.set()
        await until(lambda: not served.state.tasks)

    run(test, app, http)


@pytest.mark.parametrize("sent", [b"", POST[:20], POST + b"a"])
def test_without_a_whole_request_it_is_closed(http: str, sent: bytes) -> None:
    async def test(served: Served) -> None:
        served.state.answers_half_closed = True
        client = await served.connect()
        await client.send(sent)
        client.end.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""

    run(test, echo, http)


def test_between_requests_it_is_closed(http: str) -> None:
    async def test(served: Served) -> None:
        served.state.answers_half_closed = True
        client = await served.connect()
        await client.send(POST + b"ab")
        assert status(await client.answer()) == 200
        client.end.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""

    run(test, echo, http)
