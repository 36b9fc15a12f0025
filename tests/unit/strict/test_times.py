"""How long a client may take: both protocols on real sockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from multicore_server.ipc.scoreboard import Item
from tests.unit.strict.served import (
    PATIENCE,
    Event,
    Served,
    echo,
    is_refused,
    run,
    seen,
    status,
)


async def quiet(served: Served, seconds: float, *, steps: int = 4) -> None:
    """Let so many seconds pass for the sweeps, and a bit: a difference of two floats may be less."""
    start = time.monotonic()
    for step in range(steps + 1):
        served.sweep(start + (seconds + 0.001) * step / steps)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX"])
def test_a_head_that_is_not_completed_is_answered_408(http: str, sent: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(sent)
        await client.is_read()
        assert served.row[Item.IN_HAND] == 1
        await quiet(served, 30)
        assert status(await client.receive()) == 408
        assert served.row[Item.IN_HAND] == 0

    run(test, echo, http)


def test_a_connection_that_sends_nothing_is_closed_without_a_word(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await quiet(served, 30)
        assert await client.receive() == b""

    run(test, echo, http)


def test_a_head_that_goes_on_arriving_is_not_timed_out_before_its_time(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        start = time.monotonic()
        for step, part in enumerate([b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"X: y\r\n"]):
            await client.send(part)
            await client.is_read()
            served.sweep(start + 9 * step)
        await client.send(b"\r\n")
        assert status(await client.answer()) == 200

    run(test, echo, http)


def test_a_head_that_trickles_is_answered_408_when_its_time_is_over(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        start = time.monotonic()
        for step in range(12):
            if not is_refused(client):
                await client.send(b"E" if step else b"GET /")
            await client.is_read()
            served.sweep(start + 10 * step)
        assert status(await client.receive()) == 408

    run(test, echo, http)


def test_a_body_that_stops_is_answered_408_and_the_app_is_told(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        await client.is_read()
        await quiet(served, 60, steps=8)
        assert status(await client.receive()) == 408
        assert seen[1:] == ["disconnected"]

    run(test, echo, http)


async def unread(scope: Any, receive: Any, send: Any) -> None:
    """Answer before the body has come."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


def test_a_connection_rests_when_the_body_has_come_behind_its_response(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(2):
            await client.send(UPLOAD)
            assert status(await client.answer()) == 401
            for part in (b"ab", b"cd"):
                await client.send(part)
                await client.is_read()
            await quiet(served, 600)
        client.protocol.timeout_keep_alive = 0.05
        await client.send(UPLOAD)
        assert status(await client.answer()) == 401
        await client.send(b"abcd")
        assert await client.receive() == b""  # nothing but its end

    run(test, unread, http)


def test_where_the_rest_of_such_a_body_does_not_come_it_ends_without_a_word(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(UPLOAD)
        assert status(await client.answer()) == 401
        await client.send(b"ab")
        await client.is_read()
        await quiet(served, 60, steps=8)
        assert await client.receive() == b""

    run(test, unread, http)


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["new", "kept alive"])
def test_line_breaks_do_not_keep_a_connection_open(http: str, before: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        if before:
            await client.send(before)
            assert status(await client.answer()) == 200
        client.protocol.timeout_keep_alive = 0.05
        await client.send(b"\r\n")
        answer = await client.receive()
        assert status(answer) == 400 if http == "h11" else answer == b""  # h11 takes none

    run(test, echo, http)


def test_a_body_that_the_app_does_not_read_is_not_timed_out(http: str) -> None:
    go = Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await echo(scope, receive, send)

    async def test(served: Served) -> None:
        client = await served.connect()
        sending = asyncio.ensure_future(
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
        )
        await asyncio.sleep(0.05)
        await quiet(served, 120)
        go.set()
        assert status(await client.answer()) == 200
        await sending

    run(test, app, http)


def test_an_app_that_takes_long_is_not_timed_out(http: str) -> None:
    go = Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await echo(scope, receive, send)

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.is_read()
        await quiet(served, 600)
        go.set()
        assert status(await client.answer()) == 200

    run(test, app, http)


def test_a_kept_alive_connection_is_uvicorns_to_close(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(2):
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert status(await client.answer()) == 200
            await quiet(served, 600)

    run(test, echo, http)


def test_a_client_that_takes_nothing_is_dropped(http: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"50000000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(50):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
        seen.append("sent")

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.05)
        await quiet(served, 59)
        assert not client.protocol.transport.is_closing()
        await quiet(served, 200)
        assert len(await client.receive()) < 50_000_000
        assert client.protocol.cycle.disconnected

    run(test, app, http)


def test_a_client_that_reads_slowly_is_not(http: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"3000000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for left in range(29, -1, -1):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": left > 0})

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        taken, now = 0, time.monotonic()
        while taken < 3_000_000:
            part = await asyncio.wait_for(client.loop.sock_recv(client.end, 100_000), PATIENCE)
            assert part
            taken += len(part)
            await asyncio.sleep(0.001)
            now += 30
            served.sweep(now)

    run(test, app, http)
