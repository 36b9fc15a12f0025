"""What a request means: trailers are no headers, one Host, upgrades that are ours, HTTP/1.0."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from multicore_server.connections.limits import Limits
from tests.unit.strict.served import (
    PATIENCE,
    Event,
    Served,
    echo,
    run,
    seen,
    status,
    streams,
)

# --- what is no header


def test_trailers_are_never_headers(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n"
        end = b"3\r\nabc\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nHost: evil\r\nX-Remote-User: root\r\n\r\n"
        await client.send(head + end)
        assert status(await client.answer()) == 200
        assert seen[1] == b"abc"
        assert {name for name, _ in seen[0]["headers"]} == {b"host", b"transfer-encoding", b"trailer"}
        # What follows on this connection is judged by its own fields.
        await client.send(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
        assert status(await client.answer()) == 200
        assert seen[2]["headers"] == [(b"host", b"b")]

    run(test, echo, http)


def test_spaces_around_a_value_are_none_of_it(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        head = b"POST / HTTP/1.1\r\nHost: a\r\nX: \t value \t \r\nEmpty: \t \r\nExpect: 100-continue \r\n"
        await client.send(head + b"Content-Length: 1\r\n\r\n")
        continued = await asyncio.wait_for(client.loop.sock_recv(client.end, 2**16), PATIENCE)
        assert status(continued) == 100
        await client.send(b"x")
        assert status(await client.answer()) == 200
        headers = dict(seen[0]["headers"])
        assert (headers[b"x"], headers[b"empty"], headers[b"expect"]) == (b"value", b"", b"100-continue")

    run(test, echo, http)


def test_two_hosts_are_refused(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n")
        assert status(await client.receive()) == 400
        assert seen == []

    run(test, echo, http)


# --- targets


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"GET", b"*"),
        (b"OPTIONS", b"*/x"),
        (b"GET", b"*x"),
        (b"GET", b"foo/bar"),
        (b"GET", b"?x"),
        (b"GET", b"example.com:443"),
        (b"GET", b"http:/x"),
        (b"GET", b"http:///x"),
        (b"GET", b"s://]ufd/:"),
        (b"CONNECT", b"/"),
        (b"CONNECT", b"http://a/"),
        (b"CONNECT", b"a"),
    ],
)
def test_a_target_that_is_none_is_refused(http: str, method: bytes, target: bytes) -> None:
    async def test(served: Served) -> None:
        for served.config.root_path in ("", "/mounted"):
            client = await served.connect()
            await client.send(b"%s %s HTTP/1.1\r\nHost: a\r\n\r\n" % (method, target))
            assert status(await client.receive()) == 400
        assert seen == []

    run(test, echo, http)


@pytest.mark.parametrize(
    ("method", "target", "path"),
    [
        (b"OPTIONS", b"*", "*"),
        (b"GET", b"//a", "//a"),
        (b"GET", b"http://u:p@a.b:80/c?d", "/c"),
        (b"GET", b"http://[::1]:80/c", "/c"),
        (b"GET", b"http://a/c", "/c"),
    ],
)
def test_each_form_of_a_target_is_answered(http: str, method: bytes, target: bytes, path: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"%s %s HTTP/1.1\r\nHost: a\r\n\r\n" % (method, target))
        assert status(await client.answer()) == 200
        absolute = http == "h11" and b"://" in target  # uvicorn takes it for the path
        assert seen[0]["path"] == (target.partition(b"?")[0].decode() if absolute else path)

    run(test, echo, http)


# --- upgrades

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_an_upgrade_that_is_not_ours_is_none(http: str, framing: bytes, parts: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        whole = b"POST /a?b HTTP/1.1\r\nHost: a\r\n" + H2C + framing
        step = len(whole) // parts + 1
        for start in range(0, len(whole), step):
            await client.send(whole[start : start + step])
            await asyncio.sleep(0.01)
        assert (await client.answer()).endswith(b"\r\n\r\nhello")
        assert seen[1] == b"hello"
        assert (b"upgrade", b"h2c") in seen[0]["headers"]
        assert (seen[0]["path"], seen[0]["query_string"]) == ("/a", b"b")
        await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status(await client.answer()) == 200
        assert seen[2]["path"] == "/next"

    run(test, echo, http)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, upgrade\r\nUpgrade: h2c\r\n\r\n", b""),
        (
            b"POST / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
            b"hello",
        ),
    ],
)
def test_the_last_request_of_a_connection_may_offer_it(http: str, request_: bytes, body: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(request_)
        answer = await client.receive()
        assert (status(answer), answer.count(b"HTTP/1.1"), seen[1]) == (200, 1, body)

    run(test, echo, http)


def test_pipelined_requests_behind_such_an_upgrade_are_answered(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        one = b"POST /%d HTTP/1.1\r\nHost: a\r\n" + H2C + b"Content-Length: 1\r\n\r\n%d"
        await client.send(b"".join(one % (number, number) for number in range(5)))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 5 or not answers.endswith(b"4"):
            answers += await asyncio.wait_for(client.loop.sock_recv(client.end, 2**16), PATIENCE)
        assert [entry for entry in seen if isinstance(entry, bytes)] == [b"0", b"1", b"2", b"3", b"4"]

    run(test, echo, http)


@pytest.mark.parametrize(
    ("refused", "code", "answered"),
    [
        (b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n", b"413", 1),
        (b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400", 1),
        (b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n", b"400", 2),
        (b"GARBAGE\r\n\r\n", b"400", 1),
    ],
    ids=["too large", "no chunk", "the third", "the second"],
)
def test_what_is_refused_waits_for_those_before_it(
    http: str, refused: bytes, code: bytes, answered: int
) -> None:
    go = Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/0":
            await go.wait()
        await echo(scope, receive, send)

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\n" + refused)
        await client.is_read()
        await client.send(b"what follows")
        assert http == "h11" or not client.protocol.transport.is_reading()
        go.set()
        lines = [line for line in (await client.receive()).split(b"\r\n") if b"HTTP/1.1 " in line]
        assert [line.split()[1] for line in lines] == [b"200"] * answered + [code]

    run(test, app, http, Limits(body=8))


def test_a_websocket_is_upgraded(http: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])
        await receive()
        await send({"type": "websocket.close", "code": 1000})

    async def test(served: Served) -> None:
        client = await served.connect()
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        await client.send(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + key + b"\r\n"
        )
        assert status(await client.answer()) == 403
        assert seen == ["websocket"]

    run(test, app, http)


def test_connect_has_no_answer_but_an_error(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n")
        client.end.shutdown(socket.SHUT_WR)
        await client.answer()

    run(test, echo, http)


# --- HTTP/1.0


def test_http_1_0_gets_no_chunks(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await client.receive()).partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"chunked" not in head.lower()
        assert b"connection: close" in head.lower()

    run(test, streams, http)


def test_http_1_0_keeps_alive_where_the_client_asks_for_it() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for body in (b"a", b"b"):
            request = b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"
            answer = await (await client.send(request + body)).answer()
            assert b"connection: keep-alive" in answer
            assert answer.endswith(body)
        await client.send(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nc")
        answer = await client.receive()
        assert answer.endswith(b"c")
        assert b"connection: close" in answer

    run(test, echo, "httptools")


def test_http_1_0_a_chunked_response_of_the_apps_own_is_not_framed_twice() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"transfer-encoding", b"chunked")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"one"})

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await client.receive()).partition(b"\r\n\r\n")
        assert (body, b"chunked" in head) == (b"one", False)

    run(test, app, "httptools")


def test_http_1_0_head_has_no_body() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"HEAD / HTTP/1.0\r\n\r\n")
        assert (await client.receive()).partition(b"\r\n\r\n")[2] == b""

    run(test, streams, "httptools")


# --- the answer


def test_no_error_is_written_into_a_response_that_has_begun(http: str) -> None:
    go = Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.02)
        await client.send(b"\x00\x01 no request\r\n\r\n")
        await asyncio.sleep(0.02)
        go.set()
        answer = await client.receive()
        first, _, rest = answer.partition(b"HTTP/1.1 400")
        assert b"HTTP/1.1" not in first[1:]
        assert not rest or first.endswith(b"onetwo")  # h11 reads on when the response is complete

    run(test, app, http)


def test_the_answer_is_read_though_the_client_goes_on_sending(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 300000\r\n\r\n" + b"x" * 100_000
        )
        await asyncio.sleep(0.05)
        await client.send(b"x" * 100_000)
        assert status(await client.receive()) == 400

    run(test, echo, http)
