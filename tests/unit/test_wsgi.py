"""The WSGI bridge's responses: PEP 3333, with wsgiref.validate beside it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from multicore_server.wsgi.bridge import WSGIBridge
from tests.unit.wsgi_client import OK, TEXT, App, Client, Closing, both, call, hello, scope, streaming

# responses


@both
@pytest.mark.parametrize("app", [hello, validator(hello)])
def test_one_block(app: App, threads: int) -> None:
    client = call(app, threads=threads)
    assert (client.status, client.body, client.complete) == (200, b"hello", True)
    if app is hello:
        assert len(client.messages) == 2
        assert client.headers == {b"content-type": b"text/plain", b"content-length": b"5"}


@both
def test_blocks_are_sent_as_they_come(threads: int) -> None:
    sent_before: list[int] = []
    client = Client()

    def blocks() -> Iterator[bytes]:
        for block in (b"", b"one", b"", b"two"):
            sent_before.append(len(client.messages))
            yield block

    app = streaming(Closing(blocks()))
    call(app, client=client, threads=threads)
    assert client.body == b"onetwo"
    assert client.complete
    assert b"content-length" not in client.headers
    # The headers wait for a block that is not empty; each block is out before the next is asked for.
    assert sent_before == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("method", "status", "blocks", "length"),
    [
        ("GET", OK, [b""], b"0"),
        ("GET", OK, [], b"0"),
        ("GET", OK, (b"abc",), b"3"),
        ("GET", OK, [b"a", b"b"], None),
        ("GET", OK, iter([b"a"]), None),
        ("HEAD", OK, [], None),
        ("HEAD", OK, [b""], None),
        ("HEAD", OK, [b"abc"], b"3"),
        ("GET", "204 No Content", [b""], None),
        ("GET", "304 Not Modified", [b"dropped"], None),
    ],
)
def test_content_length(method: str, status: str, blocks: Any, length: bytes | None) -> None:
    client = call(streaming(blocks, [], status), scope(method))
    assert client.headers.get(b"content-length") == length
    assert client.complete
    if method == "HEAD" or status != OK:
        assert client.body == b""


def test_content_length_of_a_304_is_left_out() -> None:
    client = call(streaming([], [("Content-Length", "10"), ("ETag", "x")], "304 Not Modified"))
    assert client.headers == {b"etag": b"x"}


@both
def test_no_more_than_content_length(threads: int) -> None:
    ran_on: list[str] = []

    def blocks() -> Iterator[bytes]:
        yield b"abcdef"
        ran_on.append("after the block")
        while True:
            yield b"more"

    result = Closing(blocks())
    client = call(streaming(result, [("Content-Length", "4")]), threads=threads)
    assert (client.body, client.complete, result.closed) == (b"abcd", True, 1)
    assert ran_on == ["after the block"]


@both
def test_less_than_content_length(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    started = call(streaming([b"ab"], [("Content-Length", "4")]), threads=threads)
    assert not started.complete
    assert "2 bytes shorter" in caplog.text
    assert call(streaming([], [("Content-Length", "4")]), threads=threads).status == 500


@both
def test_head_of_an_endless_stream_ends(threads: int) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"

    client = call(streaming(endless()), scope("HEAD"), threads=threads)
    assert client.complete


@both
def test_file_wrapper(threads: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    files = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(OK, [("Content-Length", "150000")])
        files.append(path.open("rb"))
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](files[0], 4096)
        return wrapped

    client = call(app, threads=threads)
    assert len(client.body) == 150_000
    assert len(client.messages) == 4  # 64 KiB at a time
    assert files[0].closed


@both
def test_write(threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response(OK, TEXT)
        write(b"one")
        write(b"")
        write(b"two")
        return [b"three"]

    for tested in (app, validator(app)):
        client = call(tested, threads=threads)
        assert (client.body, client.complete) == (b"onetwothree", True)
        assert b"content-length" not in client.headers


def test_write_to_a_slow_client_is_finished_later() -> None:
    async def main() -> None:
        client = Client()
        client.gate = asyncio.Event()
        closed = Closing([b"3"])

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            write = start_response(OK, TEXT)
            write(b"1")
            write(b"2")
            return closed

        task = asyncio.ensure_future(WSGIBridge(app)(scope(), client.receive, client.send))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert client.messages == []
        client.gate.set()
        await task
        assert (client.body, client.complete, closed.closed) == (b"123", True, 1)

    asyncio.run(main())


def test_write_past_content_length_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(OK, [("Content-Length", "2")])(b"abc")
        return []

    assert call(app).status == 500
    assert "past the response's Content-Length" in caplog.text


# start_response


def failing(*calls: Any) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for arguments in calls:
            start_response(*arguments)
        return [b"x"]

    return app


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([], "before it called start_response"),
        ([(OK, []), (OK, [])], "second time without exc_info"),
        ([("200 O\nK", [])], "invalid status"),
        ([("OK", [])], "invalid status"),
        ([("999 Odd", [])], "invalid status"),
        ([(b"200 OK", [])], "not a string"),
        ([(OK, [("A", "b\r\nC: d")])], "control or wide characters"),
        ([(OK, [("A", "\u20ac")])], "control or wide characters"),
        ([(OK, [("A b", "c")])], "invalid header name"),
        ([(OK, [("A\n", "c")])], "invalid header name"),
        ([(OK, [(b"A", "b")])], "not a string"),
        ([(OK, [("A", 1)])], "not a string"),
        ([(OK, [("Content-Length", "-1")])], "invalid Content-Length"),
        ([(OK, [("Content-Length", "1"), ("Content-Length", "1")])], "repeated or invalid"),
    ],
    ids=str,
)
def test_what_is_refused(calls: Any, why: str, caplog: pytest.LogCaptureFixture) -> None:
    client = call(failing(*calls), scope("GET", query_string=b"secret=1"))
    assert (client.status, client.headers[b"connection"], client.complete) == (500, b"close", True)
    assert why in caplog.text
    assert caplog.records[0].getMessage() == "Error handling request GET /a"
    assert caplog.records[0].name == "gunicorn.error"


def test_hop_by_hop_headers_are_dropped() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(OK, [*TEXT, ("Connection", "keep-alive"), ("Transfer-Encoding", "chunked")])
        return [b"event"]

    client = call(app, scope("GET"))
    assert client.status == 200
    assert not {b"connection", b"transfer-encoding"} & set(client.headers)


def test_exc_info_replaces_headers_that_were_not_sent() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            start_response(OK, [*TEXT, ("Content-Length", "100"), ("X-Old", "1")])
            raise KeyError("x")
        except KeyError:
            start_response("503 Sorry", TEXT, sys.exc_info())
        return [b"sorry"]

    client = call(validator(app))
    assert (client.status, client.body) == (503, b"sorry")
    assert b"x-old" not in client.headers


@both
def test_exc_info_after_the_headers_were_sent_is_raised(
    threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(OK, TEXT)
        yield b"begun"
        try:
            raise KeyError("the original")
        except KeyError:
            start_response("500 Oh", TEXT, sys.exc_info())

    client = call(app, threads=threads)
    assert (client.body, client.complete) == (b"begun", False)
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is KeyError


@pytest.fixture(autouse=True)
def gunicorn_log_reaches_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gunicorn Logger that another test made would have turned this off.
    monkeypatch.setattr(logging.getLogger("gunicorn.error"), "propagate", True)
