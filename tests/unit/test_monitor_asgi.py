"""The monitor's requests, responses and routes: messages of ASGI in, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from multicore_server.monitor.asgi import ClientLeftError, Request, Response, Route, Stream, app_of, line
from multicore_server.monitor.gate import App, Message

LEAVES = {"type": "http.disconnect"}


class Client:
    """Sends these messages and then waits for ever; keeps what it gets."""

    def __init__(self, *messages: Message) -> None:
        self.messages = [*messages]
        self.got: list[Message] = []

    async def receive(self) -> Message:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Message) -> None:
        self.got.append(message)

    def ask(self, app: App, scope: Message) -> None:
        async def asked() -> None:
            await app(scope, self.receive, self.send)

        asyncio.run(asked())


def body(data: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": data, "more_body": more}


def request(
    *messages: Message, headers: Sequence[tuple[bytes, bytes]] = (), query: bytes = b"", **scope: Any
) -> Request:
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": query, **scope}
    return Request(scope, Client(*messages).receive)


def ask(routes: Sequence[Route], path: str, method: str, *messages: Message) -> list[Message]:
    client = Client(*messages)
    asked = request(path=path, method=method)
    client.ask(app_of(routes), asked.scope)
    return client.got


# --- requests


def test_fields_of_one_name_are_joined() -> None:
    asked = request(headers=[(b"accept", b"a"), (b"host", b"x"), (b"accept", b"b;q=\xff")])
    assert asked.header(b"accept") == "a,b;q=\xff"
    assert asked.header(b"accept-encoding") is None


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"", "0"),
        (b"last=3", "3"),
        (b"last=3&last=4", "4"),
        (b"last=", ""),
        (b"a&last=%41+b&", "A b"),
        (b"\xff", "0"),
    ],
)
def test_an_argument(query: bytes, value: str) -> None:
    assert request(query=query).argument("last", "0") == value


def test_a_body_in_parts() -> None:
    asked = request(body(b"ab", more=True), body(b"", more=True), body(b"c"))
    assert asyncio.run(asked.body(3)) == b"abc"


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    asked = request(body(b"ab", more=True), body(b"cd", more=True), body(b"ef", more=True))
    with pytest.raises(ValueError, match="longer than 3 bytes"):
        asyncio.run(asked.body(3))


def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    asked = request(body(b"ab", more=True), LEAVES)
    with pytest.raises(ClientLeftError):
        asyncio.run(asked.body(3))


# --- routes


async def answer(asked: Request) -> Response:
    return line(f"to {asked.method}")


async def read(asked: Request) -> Response:
    return Response(await asked.body(10), kind="application/json", headers=((b"vary", b"accept"),))


ROUTES = [Route("/", answer), Route("/read", read, ("POST",))]


def test_an_answer() -> None:
    start, end = ask(ROUTES, "/", "HEAD")
    assert start == {
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"8")],
    }
    assert end["body"] == b"to HEAD\n"


def test_an_answer_of_another_kind() -> None:
    start, end = ask(ROUTES, "/read", "POST", body(b"[]"))
    assert start["headers"] == [
        (b"content-type", b"application/json"), (b"vary", b"accept"), (b"content-length", b"2"),
    ]  # fmt: skip
    assert end["body"] == b"[]"


@pytest.mark.parametrize(
    ("path", "method", "status", "allowed"),
    [
        ("/none", "GET", 404, []),
        ("/read/", "POST", 404, []),
        ("", "GET", 404, []),
        ("/", "POST", 405, [b"GET, HEAD"]),
        ("/read", "GET", 405, [b"POST"]),
        ("/read", "HEAD", 405, [b"POST"]),
    ],
)
def test_what_is_refused(path: str, method: str, status: int, allowed: list[bytes]) -> None:
    start, _ = ask(ROUTES, path, method)
    assert start["status"] == status
    assert [value for name, value in start["headers"] if name == b"allow"] == allowed


def test_who_leaves_in_the_middle_is_told_so() -> None:
    assert ask(ROUTES, "/read", "POST", LEAVES)[0]["status"] == 400


# --- streams


class Parts:
    """Two parts, then nothing for ever, or an exception. ``closed`` is whether the generator was."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.closed = False

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b"two"
            if self.fails:
                raise OSError("no more")
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def ended() -> AsyncGenerator[bytes, None]:
    yield b"one"


def test_a_stream_ends_with_its_parts() -> None:
    async def endpoint(_: Request) -> Stream:
        return Stream(ended(), "text/event-stream")

    start, *parts = ask([Route("/", endpoint)], "/", "GET")
    assert start["headers"] == [(b"content-type", b"text/event-stream")]
    assert [(part["body"], part.get("more_body", False)) for part in parts] == [(b"one", True), (b"", False)]


class Visitor(Client):
    """Leaves when it has got so many parts."""

    async def receive(self) -> Message:
        while len(self.got) < 3:
            await asyncio.sleep(0)
        return LEAVES


def test_a_stream_ends_when_its_client_leaves() -> None:
    parts, client = Parts(), Visitor()
    stream = Stream(parts.stream(), "text/plain")
    asked = Request({"method": "GET"}, client.receive)
    asyncio.run(asyncio.wait_for(stream.send(asked, client.send), 10))
    assert [message["body"] for message in client.got[1:]] == [b"one", b"two"]
    assert parts.closed


def test_a_stream_that_is_cancelled_leaves_nothing_behind() -> None:
    parts, client = Parts(), Client()

    async def run() -> set[asyncio.Task[Any]]:
        stream = Stream(parts.stream(), "text/plain")
        sending = asyncio.ensure_future(stream.send(Request({"method": "GET"}, client.receive), client.send))
        while len(client.got) < 3:
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    assert parts.closed


def test_what_the_parts_raise_is_raised() -> None:
    parts = Parts(fails=True)
    client = Client()
    stream = Stream(parts.stream(), "text/plain")
    with pytest.raises(OSError, match="no more"):
        asyncio.run(stream.send(Request({"method": "GET"}, client.receive), client.send))
    assert [message["body"] for message in client.got[1:]] == [b"one", b"two"]
    assert parts.closed
