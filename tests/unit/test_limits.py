"""What a client may send and how long it may take: both protocols on real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from uvicorn import Config

from multicore_server.connections import limits, timeouts
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.limits import Limits
from multicore_server.connections.protocol import ConnectionsState, movable
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker import loop

PATIENCE = 10.0  # seconds

App = Callable[[Any, Any, Any], Awaitable[None]]


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Served:
    """One worker's connections, on one end of a pair of sockets each."""

    def __init__(self, app: App, http: str, bounds: Limits) -> None:
        options: dict[str, Any] = {
            "http": http,
            "ws": "wsproto",
            "h11_max_incomplete_event_size": bounds.head,
        }
        config = Config(app, log_config=None, access_log=False, **options)
        config.load()
        self.row = Scoreboard(1).row(0)
        self.state = ConnectionsState(self.row, OpenGate())
        self.state.limits = bounds
        protocol: Any = config.http_protocol_class
        self.protocol = movable(protocol)
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.ends: list[socket.socket] = []

    async def connect(self) -> Client:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.ends.append(theirs)
        _, protocol = await self.loop.connect_accepted_socket(self._make, ours)
        return Client(theirs, protocol)

    def _make(self) -> Any:
        return self.protocol(self.config, self.state, app_state={}, _loop=self.loop)

    def sweep(self, now: float) -> None:
        timeouts.sweep(list(self.state.connections), self.state.limits, now)

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        while self.state.connections or self.state.tasks:  # `run` limits the time
            await asyncio.sleep(0.005)


class Event:
    """As asyncio's, for each of the loops of a test."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True

    async def wait(self) -> None:
        while not self.is_set:
            await asyncio.sleep(0.005)
        self.is_set = False


class Client:
    def __init__(self, end: socket.socket, protocol: Any) -> None:
        self.end = end
        self.protocol = protocol
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> Client:
        await asyncio.wait_for(self.loop.sock_sendall(self.end, data), PATIENCE)
        return self

    async def receive(self) -> bytes:
        """What comes until the server closes, or nothing for a moment."""
        parts = []
        while True:
            try:
                part = await asyncio.wait_for(self.loop.sock_recv(self.end, 2**16), PATIENCE)
            except ConnectionResetError:
                part = b""
            parts.append(part)
            if not part:
                return b"".join(parts)

    async def answer(self) -> bytes:
        """One response with a Content-Length, or to the end."""
        data: bytes = b""
        while True:
            head, found, body = data.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and length and len(body) >= int(length[0].split(b":")[1]):
                return data
            part: bytes = await asyncio.wait_for(self.loop.sock_recv(self.end, 2**16), PATIENCE)
            if not part:
                return data
            data += part


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def run(test: Callable[[Served], Awaitable[None]], app: App, http: str, bounds: Limits | None = None) -> None:
    async def whole() -> None:
        served = Served(app, http, bounds or Limits())
        try:
            await test(served)
        finally:
            await served.close()
        assert (served.row[Item.IN_HAND], served.row[Item.UNREAD]) == (0, 0)

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        seen.clear()
        loop.run(limited(whole()), factory)


async def limited(whole: Any) -> None:
    await asyncio.wait_for(whole, 3 * PATIENCE)


async def read(receive: Any) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        body += message["body"]
        if not message["more_body"]:
            return body


seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body, and notes its head."""
    seen.append(scope)
    try:
        body = await read(receive)
    except ConnectionError:
        seen.append("disconnected")
        return
    seen.append(body)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def streams(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    await send({"type": "http.response.body", "body": b"two"})


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


def test_two_hosts_are_refused(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n")
        assert status(await client.receive()) == 400
        assert seen == []

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
def test_gunicorns_limits_are_kept(http: str, head: bytes, code: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(head)
        assert status(await client.answer()) == code

    run(test, echo, http, GUNICORN)


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
        if _is_refused(client):
            break
        await asyncio.sleep(0)
    return gone


def _is_refused(client: Client) -> bool:
    return client.protocol not in client.protocol.connections


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
def test_a_body_above_the_limit_is_refused(http: str, request_: bytes) -> None:
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


# --- time


async def quiet(served: Served, seconds: float, *, steps: int = 4) -> None:
    """Let so many seconds pass for the sweeps."""
    start = time.monotonic()
    for step in range(steps + 1):
        served.sweep(start + seconds * step / steps)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX"])
def test_a_head_that_is_not_completed_is_answered_408(http: str, sent: bytes) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(sent)
        await asyncio.sleep(0.02)
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
            await asyncio.sleep(0.02)
            served.sweep(start + 9 * step)
        await client.send(b"\r\n")
        assert status(await client.answer()) == 200

    run(test, echo, http)


def test_a_head_that_trickles_is_answered_408_when_its_time_is_over(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        start = time.monotonic()
        for step in range(12):
            if not _is_refused(client):
                await client.send(b"E" if step else b"GET /")
            await asyncio.sleep(0.02)
            served.sweep(start + 10 * step)
        assert status(await client.receive()) == 408

    run(test, echo, http)


def test_a_body_that_stops_is_answered_408_and_the_app_is_told(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        await asyncio.sleep(0.02)
        await quiet(served, 60, steps=8)
        assert status(await client.receive()) == 408
        assert seen[1:] == ["disconnected"]

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
        await asyncio.sleep(0.02)
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
