"""Large request bodies: where they are kept, what a full disk costs, how an app in a thread reads them."""

from __future__ import annotations

import asyncio
import resource
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multicore_server.wsgi.body import ArrivingBody
from multicore_server.wsgi.bridge import WSGIBridge
from tests.support.descriptors import descriptors
from tests.unit.wsgi_client import OK, TEXT, Client, both, call, hello, scope

PIECE = b"x" * 100_000


def large(pieces: int) -> tuple[dict[str, Any], Client]:
    length = b"%d" % (pieces * len(PIECE))
    return scope("POST", headers=[(b"content-length", length)]), Client(*[PIECE] * pieces)


def whole(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    data = environ["wsgi.input"].read()
    start_response(OK, TEXT)
    return [b"%d %s" % (len(data), environ["CONTENT_LENGTH"].encode())]


# --- names with an underscore


@both
@pytest.mark.parametrize(
    ("header_map", "status", "seen"),
    [("drop", 200, b"None"), ("refuse", 400, b"Bad Request\n"), ("dangerous", 200, b"1")],
)
def test_header_map_is_gunicorns(header_map: str, status: int, seen: bytes, threads: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(OK, TEXT)
        return [str(environ.get("HTTP_X_USER")).encode()]

    client = call(app, scope(headers=[(b"x_user", b"1")]), threads=threads, header_map=header_map)
    assert (client.status, client.body) == (status, seen)
    plain = call(app, scope(headers=[(b"x-user", b"1")]), threads=threads, header_map=header_map)
    assert (plain.status, plain.body) == (200, b"1")


# --- where bodies are kept


def test_the_first_directory_that_takes_a_file_is_taken(tmp_path: Path) -> None:
    request, client = large(20)
    dirs = [str(tmp_path / "missing"), str(tmp_path)]
    assert call(whole, request, client, spool_dirs=dirs).body == b"2000000 2000000"


def test_a_body_is_kept_where_python_finds_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    request, client = large(20)
    assert call(whole, request, client, spool_dirs=[None, str(tmp_path)]).status == 200


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow above 1.5 MB: writing fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_costs_that_request_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = descriptors()
    request, client = large(30)
    assert call(lambda *_: pytest.fail("called"), request, client, spool_dirs=[str(tmp_path)]).status == 507
    assert client.headers[b"connection"] == b"close"
    assert "no room for the request body of POST /a" in caplog.text
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []
    assert call(hello).body == b"hello"
    request, client = large(12)
    assert call(whole, request, client, spool_dirs=[str(tmp_path)]).status == 200


def test_no_directory_at_all_costs_that_request_alone(tmp_path: Path) -> None:
    request, client = large(20)
    assert call(whole, request, client, spool_dirs=[str(tmp_path / "missing")]).status == 507


# --- an answer from the head alone


class Guarded:
    """An app that refuses large bodies before they are read."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return whole(environ, start_response)

    def before_body(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes] | None:
        self.asked.append("wsgi.input" in environ)
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        if int(environ.get("CONTENT_LENGTH", 0)) <= 1_000_000:
            return None
        start_response("413 Content Too Large", TEXT)
        return [b"too large"]


@both
def test_an_app_may_answer_before_the_body_is_read(threads: int) -> None:
    app = Guarded()
    request, client = large(20)
    answered = call(app, request, client, threads=threads)
    assert (answered.status, answered.body) == (413, b"too large")
    assert answered.received == 0
    request, client = large(10)
    assert call(app, request, client, threads=threads).body == b"1000000 1000000"
    assert app.asked == [False, False]
    call(app, scope(), threads=threads)
    assert len(app.asked) == 2  # without a body there is nothing to be before of


@both
def test_a_mistake_before_the_body_is_the_apps(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    class Mistaken(Guarded):
        def before_body(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes] | None:
            raise ValueError("a mistake")

    request, client = large(20)
    assert call(Mistaken(), request, client, threads=threads).status == 500
    assert "a mistake" in caplog.text


# --- in threads


def test_an_app_in_a_thread_reads_a_body_as_it_arrives() -> None:
    request, client = large(3)
    first, rest = client.pieces[:1], client.pieces[1:]
    more = asyncio.Event()
    read: list[int] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def receive() -> Any:
        if first:
            return {"type": "http.request", "body": first.pop(), "more_body": True}
        await asyncio.wait_for(more.wait(), 10)
        piece = rest.pop()
        return {"type": "http.request", "body": piece, "more_body": bool(rest)}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        read.append(len(environ["wsgi.input"].read(100_000)))
        loops[0].call_soon_threadsafe(more.set)  # had the app not been called before, nothing would
        read.append(len(environ["wsgi.input"].read()))
        start_response(OK, TEXT)
        return [b"read"]

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.wait_for(WSGIBridge(app, threads=2)(request, receive, client.send), 10)

    asyncio.run(main())
    assert read == [100_000, 200_000]
    assert client.body == b"read"


@pytest.mark.parametrize("how", ["lines", "pieces", "readinto"])
def test_the_body_is_a_file_to_an_app_in_a_thread(how: str) -> None:
    lines = [b"line %d\n" % number for number in range(20_000)]
    data = b"".join(lines)
    request = scope("POST", headers=[(b"content-length", b"%d" % len(data))])
    client = Client(*[data[start : start + 50_000] for start in range(0, len(data), 50_000)])

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        if how == "lines":
            seen.extend(body)
        elif how == "pieces":
            while piece := body.read(777):
                seen.append(piece)
        else:
            buffer = bytearray(len(data))
            body.readinto(buffer)
            seen.append(bytes(buffer))
        start_response(OK, TEXT)
        return [b"ok"]

    seen: list[bytes] = []
    assert call(app, request, client, threads=2).status == 200
    assert seen == lines if how == "lines" else b"".join(seen) == data


def test_an_app_that_answers_first_may_read_on() -> None:
    request, client = large(3)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(OK, TEXT)
        yield b"begun "
        yield b"%d" % len(environ["wsgi.input"].read())

    assert call(app, request, client, threads=2).body == b"begun 300000"


def test_an_app_need_not_read_it() -> None:
    request, client = large(3)
    assert call(hello, request, client, threads=2).body == b"hello"
    assert client.received == 0


def test_a_client_that_leaves_in_the_middle_is_an_oserror(caplog: pytest.LogCaptureFixture) -> None:
    found: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as exc:
            found.append(exc)
            raise
        return []

    request, client = large(3)
    client.pieces = client.pieces[:1]
    sent = client.pieces.copy()

    async def receive() -> Any:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": True}
        return {"type": "http.disconnect"}

    async def main() -> None:
        await WSGIBridge(app, threads=2)(request, receive, client.send)

    asyncio.run(main())
    assert len(found) == 1
    assert isinstance(found[0], ConnectionResetError)
    assert caplog.text == ""  # it is nobody's mistake


def test_a_request_that_is_given_up_frees_the_thread_that_reads() -> None:
    ended = threading.Event()
    reading = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            reading.set()
            environ["wsgi.input"].read()
        finally:
            ended.set()
        return []

    request, client = large(2)

    async def never() -> Any:
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.ensure_future(WSGIBridge(app, threads=2)(request, never, client.send))
        await asyncio.to_thread(reading.wait, 10)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(ended.wait, 10)

    asyncio.run(main())


def test_what_was_handed_to_the_loop_is_ended_there_alone() -> None:
    ended: list[str] = []

    async def receive() -> Any:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # while the thread goes on
            ended.append(threading.current_thread().name)
            raise

    async def main() -> None:
        body = ArrivingBody(receive, asyncio.get_running_loop())
        reading = asyncio.create_task(asyncio.to_thread(body.read))
        await asyncio.sleep(0.05)
        body.abort()
        with pytest.raises(ConnectionResetError):
            await reading
        await asyncio.sleep(0.2)

    asyncio.run(main())
    assert ended == [threading.current_thread().name]
