"""How large a request may be: both protocols on real sockets."""

from __future__ import annotations

import asyncio

import pytest

from multicore_server.connections import limits
from multicore_server.connections.limits import Limits
from tests.unit.strict.served import (
    Client,
    Served,
    echo,
    is_refused,
    run,
    status,
)

# --- sizes

GUNICORN = limits.gunicorns(4094, 100, 8190)


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 4000), 200),
        (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 4100), 414),
        (b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 300_000), 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 8180), 200),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 8190), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 99 + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 100 + b"\r\n", 431),
    ],
)
def test_gunicorns_limits_are_kept(
    http: str, head: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(head)
        assert status(await client.answer()) == code

    run(test, echo, http, GUNICORN)
    said = [line.partition(": its ")[0] for line in caplog.messages if "limit_request" in line]
    line = f"a request from a unix socket is refused with {code}"
    assert said == ([] if code == 200 else [line, line]), "with each of two event loops"
    assert http == "h11" or "Invalid HTTP request received." not in caplog.messages


@pytest.mark.parametrize(("limit", "code"), [(400, 200), (399, 414)])
def test_a_request_line_is_counted_without_its_end_and_root_path(http: str, limit: int, code: int) -> None:
    async def test(served: Served) -> None:
        served.config.root_path = "/mounted"
        client = await served.connect()
        line = b"GET /%s?a=b HTTP/1.1" % (b"x" * 382)
        assert len(line) == 400
        await client.send(line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status(await client.answer()) == code

    run(test, echo, http, limits.gunicorns(limit, 100, 8190))


@pytest.mark.parametrize(("size", "code"), [(60_000, 200), (66_000, 431)])
def test_a_head_is_limited_as_a_whole(http: str, size: int, code: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        field = b"X-Y: %s\r\n" % (b"x" * 991)
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + field * (size // len(field)) + b"\r\n")
        assert status(await client.answer()) == code

    run(test, echo, http)


async def flood(client: Client, start: bytes, piece: bytes, most: int) -> int:
    """Send pieces until the server closes or ``most`` bytes are gone; how many were."""
    await client.send(start)
    gone = 0
    while gone < most:
        try:
            await client.send(piece)
        except OSError:
            break
        gone += len(piece)
        if is_refused(client):
            break
        await asyncio.sleep(0)
    return gone


@pytest.mark.parametrize(
    ("start", "piece", "code"),
    [
        (b"GET / HTTP/1.1\r\n", b"X-Y: %s\r\n" % (b"y" * 10_000), 431),
        (b"GET / HTTP/1.1\r\nX: ", b"y" * 10_000, 431),
        (b"GET /", b"y" * 10_000, 414),
    ],
    ids=["fields", "one value", "line"],
)
def test_a_head_without_an_end_is_refused_before_memory_grows(
    http: str, start: bytes, piece: bytes, code: int
) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        assert await flood(client, start, piece, 5_000_000) < 700_000
        assert status(await client.receive()) == code

    run(test, echo, http)


def test_line_breaks_before_a_head_are_limited(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        assert await flood(client, b"\r\n", b"\r\n" * 5_000, 5_000_000) < 700_000
        assert status(await client.receive()) == (400 if http == "h11" else 431)

    run(test, echo, http)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"5\r\nhello\r\n0\r\nX: ", b"y" * 10_000),
        (b"5\r\nhello\r\n0\r\n", b"X: %s\r\n" % (b"y" * 10_000)),
        (b"5;", b"y" * 10_000),
    ],
    ids=["one trailer", "trailers", "extension"],
)
def test_what_stands_between_the_parts_of_a_body_is_limited(http: str, start: bytes, piece: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        gone = await flood(client, head + start, piece, 5_000_000)
        assert gone < 1_500_000

    run(test, echo, http)


def test_a_large_body_is_no_large_head(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        body = b"x" * 1_000_000
        sending = asyncio.ensure_future(
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + body)
        )
        assert (await client.answer()).endswith(body)
        await sending
        chunks = b"".join(b"%x\r\n%s\r\n" % (9000, b"y" * 9000) for _ in range(100)) + b"0\r\n\r\n"
        sending = asyncio.ensure_future(
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        )
        assert len(await client.answer()) > 900_000
        await sending

    run(test, echo, http)


# --- the body's size


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\nabcdef\r\n",
    ],
    ids=["announced", "expected", "counted"],
)
def test_a_body_above_the_limitis_refused(http: str, request_: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(request_)
        assert status(await client.receive()) == 413

    run(test, echo, http, Limits(body=10))


def test_a_body_within_the_limit_is_not(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(3):  # each request is counted for itself
            await client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n"
            )
            assert (await client.answer()).endswith(b"abcdef")

    run(test, echo, http, Limits(body=10))
