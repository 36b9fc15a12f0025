"""A response that comes before its request is complete, and is the last: its client reads it all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from multicore_server.connections import lingering
from multicore_server.connections.spool import Spools
from tests.unit.strict.served import Served, run, status

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n"


def answers(*headers: tuple[bytes, bytes], size: int = 2) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = (b"content-length", b"%d" % size)
        await send({"type": "http.response.start", "status": 401, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": b"x" * size})

    return app


CLOSES = (b"connection", b"close")


@pytest.mark.parametrize("spools", [None, Spools()], ids=["asgi", "wsgi"])
def test_the_client_reads_the_answer_though_it_still_sends(http: str, spools: Spools | None) -> None:
    async def test(served: Served) -> None:
        served.state.spools = spools
        client = await served.connect()
        await client.send(HEAD + b"x" * 1000)
        while served.state.connections:
            await asyncio.sleep(0.001)
        assert len(served.state.lingering) == 1
        for _ in range(50):  # it has not seen the answer yet
            await client.send(b"x" * 1000)
        answer = await client.receive()
        assert (status(answer), answer[-6:]) == (401, b"\r\n\r\nxx")
        client.end.close()
        while served.state.lingering:
            await asyncio.sleep(0.001)

    run(test, answers(CLOSES), http)


def test_it_does_not_last_for_ever(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER", 0.05)

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(HEAD + b"x" * 1000)
        while served.state.connections:
            await asyncio.sleep(0.001)
        while served.state.lingering:  # `run` limits the time
            await asyncio.sleep(0.001)
        assert status(await client.receive()) == 401

    run(test, answers(CLOSES), http)


def test_where_the_request_is_complete_it_is_closed_at_once(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(HEAD.replace(b"10000000", b"4") + b"body")
        assert status(await client.receive()) == 401
        assert not served.state.lingering

    run(test, answers(CLOSES), http)


def test_a_connection_that_is_kept_alive_reads_the_rest(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(HEAD.replace(b"10000000", b"2000") + b"x" * 1000)
        assert status(await client.answer()) == 401
        await client.send(b"x" * 1000 + HEAD.replace(b"10000000", b"4") + b"body")
        assert status(await client.answer()) == 401
        assert not served.state.lingering

    run(test, answers(), http)


def test_a_large_answer_is_not_cut(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(HEAD + b"x" * 100)
        assert len(await client.receive()) > 5_000_000

    run(test, answers(CLOSES, size=5_000_000), http)
