"""The WSGI bridge's running of apps: failures, clients that leave, inline and in threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from multicore_server.wsgi.bridge import ENVIRON_WANTED, WSGIBridge
from tests.unit.wsgi_client import OK, TEXT, Client, Closing, both, call, hello, scope, streaming

# failures


@both
def test_an_app_that_raises(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise OSError("boom")

    client = call(broken, threads=threads)
    assert (client.status, client.body) == (500, b"Internal Server Error")
    assert "boom" in caplog.text


@both
@pytest.mark.parametrize("sent", [0, 1])
def test_an_iterable_that_raises_is_closed(threads: int, sent: int, caplog: pytest.LogCaptureFixture) -> None:
    def blocks() -> Iterator[bytes]:
        if sent:
            yield b"x"
        raise OSError("boom")

    result = Closing(blocks())
    client = call(streaming(result), threads=threads)
    assert result.closed == 1
    assert (client.status, client.complete) == ((200, False) if sent else (500, True))


@both
def test_a_close_that_raises_is_logged(threads: int, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(list[bytes]):
        def close(self) -> None:
            raise OSError("boom")

    assert call(streaming(Broken([b"x"])), threads=threads).complete
    assert "Error in close() of request GET /a" in caplog.text


def test_blocks_that_are_not_bytes(caplog: pytest.LogCaptureFixture) -> None:
    assert call(streaming(["text"])).status == 500  # type: ignore[list-item]
    assert "str where bytes were expected" in caplog.text


@both
@pytest.mark.parametrize("block", [b"x", b""])
def test_a_client_that_leaves_ends_an_endless_stream(
    threads: int, block: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(leaves_after=3)

    def endless() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x"
        while True:
            yield block

    result = Closing(endless())
    call(streaming(result), client=client, threads=threads)
    assert result.closed == 1
    assert not client.complete
    assert not caplog.records


def test_a_client_that_leaves_ends_an_endless_write_in_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response(OK, TEXT)
        try:
            while True:
                write(b"x")
        except OSError as error:
            raised.append(error)
            raise

    call(app, client=Client(leaves_after=3), threads=2)
    assert isinstance(raised[0], BrokenPipeError)
    assert not caplog.records


def cancel_while_it_streams(threads: int) -> tuple[Closing, Client]:
    result = Closing(iter(lambda: b"x", b""))
    clients: list[Client] = []

    async def main() -> None:
        client = Client()
        clients.append(client)
        task = asyncio.ensure_future(
            WSGIBridge(streaming(result), threads=threads)(scope(), client.receive, client.send)
        )
        while not client.messages:
            await asyncio.sleep(0)
        client.gate = asyncio.Event()  # the client reads no more
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    return result, clients[0]


def test_close_is_called_when_the_task_is_cancelled() -> None:
    result, client = cancel_while_it_streams(1)
    assert (result.closed, client.complete) == (1, False)


def test_close_is_called_in_its_thread_when_the_task_is_cancelled() -> None:
    result, _ = cancel_while_it_streams(2)
    deadline = threading.Event()
    for _ in range(500):
        if result.closed:
            break
        deadline.wait(0.01)
    assert result.closed == 1
    assert result.thread != threading.get_ident()


def test_a_base_exception_is_left_to_the_server() -> None:
    result = Closing(raising(SystemExit(3)))
    with pytest.raises(SystemExit):
        call(streaming(result))
    assert result.closed == 1


def raising(error: BaseException) -> Generator[bytes, None, None]:
    yield b"x"
    raise error


# inline and threads


def test_no_loop_is_seen_inline_and_one_of_its_own_may_run() -> None:
    async def view() -> bytes:
        assert asyncio.current_task() is not None
        return b"from a loop of its own"

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        write = start_response(OK, TEXT)
        write(b"")
        write(b"+")
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        yield asyncio.run(view())

    client = call(app)
    assert client.body == b"+from a loop of its own"


def test_one_request_at_a_time_inline() -> None:
    inside = 0

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        nonlocal inside
        assert inside == 0
        inside += 1
        start_response(OK, TEXT)
        for _ in range(5):
            yield b"x"
        inside -= 1

    async def main() -> None:
        bridge = WSGIBridge(app)
        clients = [Client() for _ in range(10)]
        await asyncio.gather(*(bridge(scope(), client.receive, client.send) for client in clients))
        assert all(client.complete for client in clients)

    asyncio.run(main())


def test_threads_run_beside_each_other_and_keep_a_request_in_one() -> None:
    both_inside = threading.Barrier(2, timeout=10)
    variable: ContextVar[str] = ContextVar("variable")
    seen = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        assert environ["wsgi.multithread"] is True
        assert variable.get() == "carried over"
        threads = {threading.get_ident()}
        both_inside.wait()
        start_response(OK, TEXT)
        for _ in range(5):
            yield b"x"
            threads.add(threading.get_ident())
        seen.append(threads)

    async def main() -> None:
        variable.set("carried over")
        bridge = WSGIBridge(app, threads=2)
        clients = [Client() for _ in range(2)]
        await asyncio.gather(*(bridge(scope(), client.receive, client.send) for client in clients))
        assert all(client.body == b"xxxxx" for client in clients)

    asyncio.run(main())
    assert [len(threads) for threads in seen] == [1, 1]


# the rest of ASGI


def test_websockets_are_refused_and_lifespan_is_an_error() -> None:
    assert call(hello, {"type": "websocket"}).messages == [{"type": "websocket.close", "code": 1000}]
    with pytest.raises(RuntimeError, match="lifespan"):
        call(hello, {"type": "lifespan"})


def test_the_access_log_is_given_the_environ_when_it_asks() -> None:
    asked = {**scope(), ENVIRON_WANTED: None}
    call(hello, asked)
    assert asked[ENVIRON_WANTED]["wsgi.version"] == (1, 0)
    unasked = scope()
    call(hello, unasked)
    assert ENVIRON_WANTED not in unasked


@pytest.fixture(autouse=True)
def gunicorn_log_reaches_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    # A gunicorn Logger that another test made would have turned this off.
    monkeypatch.setattr(logging.getLogger("gunicorn.error"), "propagate", True)
