"""What is said of requests that take long, and what their clients get, on scripted connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from multicore_server.connections.factory import movable
from multicore_server.ipc.scoreboard import Item
from multicore_server.settings.table import Settings
from multicore_server.worker import cycle, meter
from multicore_server.worker import long_requests as module
from multicore_server.worker.access import NOTED
from multicore_server.worker.long_requests import MOST_STACKS, LongRequests, long_requests
from multicore_server.worker.request_stack import stack_of
from tests.unit.fake_transport import GET, Connections
from tests.unit.rows import cell

SLOW, LIMIT = 5.0, 30.0


class Looked:
    """Connections whose requests are looked at, by a clock that is the test's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, http: str) -> None:
        self.loop = loop
        self.now = 1000.0
        self.served = Connections(loop, http)
        self.row = self.served.row
        self.long = LongRequests(self.row, SLOW, LIMIT, lambda: "instance=0", threading.get_ident())

    def install(self) -> None:
        """Before the first connection."""
        cycle.install(self.row, watch=self.long)
        protocol: Any = self.served.config.http_protocol_class
        self.served.protocol = movable(protocol)

    def ask(self, data: bytes = GET) -> Any:
        connection = self.served.connect()
        self.served.receive(connection, data)
        return connection

    def after(self, seconds: float) -> None:
        """So much later, the heart has beaten all the time."""
        self.now += seconds
        self.sweep()
        self.sweep()

    def sweep(self) -> None:
        async def sweep() -> None:
            self.long.sweep()

        self.loop.run_until_complete(sweep())
        self.served.turn()


@pytest.fixture(params=["httptools", "h11"])
def looked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looked]:
    loop = asyncio.new_event_loop()
    before = [one.RequestResponseCycle for one in meter.MODULES]
    made = Looked(loop, request.param)
    for name in (module, meter, cycle):
        monkeypatch.setattr(name, "perf_counter", lambda: made.now)
    made.install()
    yield made
    made.served.end()
    loop.close()
    for one, theirs in zip(meter.MODULES, before, strict=True):
        one.RequestResponseCycle = theirs  # type: ignore[attr-defined]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The first line of each message since the last call."""

    def taken() -> list[str]:
        lines = [record.getMessage().splitlines()[0] for record in caplog.records]
        caplog.clear()
        return lines

    return taken


Said = Callable[[], list[str]]


def test_a_slow_one_is_named_once_and_at_its_end(looked: Looked, said: Said) -> None:
    looked.ask()
    looked.after(4.9)
    assert said() == []
    looked.after(0.1)
    assert said() == ["instance=0 slow request: GET /, no response after 5.0 s; it is here:"]
    looked.after(1)
    assert said() == []
    looked.served.answer()
    assert said() == ["instance=0 slow request: GET /, answered 200 after 6.0 s"]
    assert not looked.long


def test_a_quick_one_is_not_named(looked: Looked, said: Said) -> None:
    looked.ask()
    assert looked.long
    looked.now += 4
    looked.served.answer()
    looked.after(10)
    assert (said(), bool(looked.long)) == ([], False)


def test_one_that_ends_between_two_looks_is_named_too(looked: Looked, said: Said) -> None:
    looked.ask()
    looked.now += 7
    looked.served.answer()
    assert said() == ["instance=0 slow request: GET /, answered 200 after 7.0 s"]


def test_the_ends_that_are_no_answers(looked: Looked, said: Said) -> None:
    looked.ask()
    looked.now += 7
    looked.served.answer(well=False)
    assert said()[-1].endswith(("GET /, answered 500 after 7.0 s", "GET /, failed after 7.0 s"))
    connection = looked.ask()
    looked.now += 7
    connection.transport.lose(None)
    looked.served.turn()
    looked.served.answer()
    assert said() == ["instance=0 slow request: GET /, its client left after 7.0 s"]


def test_a_request_beyond_the_limit_gets_504_and_the_app_s_answer_is_dropped(
    looked: Looked, said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    connection = looked.ask()
    transport = connection.transport
    looked.after(29.9)
    said()
    looked.after(0.1)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "instance=0 request_timeout: GET /, no response after 30.0 s; answered 504, and its task is cancelled"
    )
    assert "in __call__\n    if not await told" in record.getMessage()
    assert transport.written.startswith(b"HTTP/1.1 504 Gateway Time")
    assert transport.written.lower().count(b"connection: close\r\n") == 1
    assert transport.written.endswith(b"\r\n\r\nGateway Timeout\n")
    assert transport.is_closing()
    assert looked.row[Item.REQUEST_TIMEOUTS] == 1
    assert looked.row[cell("GET", "5xx")] == 1
    assert looked.served.counts == (0, 0, 0)
    assert not looked.served.state.tasks


def test_a_loop_that_stood_still_answers_first_what_is_ready(looked: Looked) -> None:
    connection = looked.ask()
    looked.sweep()
    looked.now += LIMIT
    looked.sweep()
    looked.served.answer()
    assert connection.transport.written.startswith(b"HTTP/1.1 200 ")
    looked.ask()
    looked.sweep()
    looked.now += LIMIT
    looked.sweep()
    looked.now += 0.08
    looked.sweep()
    assert looked.row[Item.REQUEST_TIMEOUTS] == 1


def test_its_client_takes_nothing_so_the_connection_is_closed(looked: Looked, said: Said) -> None:
    connection = looked.ask()
    connection.pause_writing()
    looked.after(LIMIT)
    assert said()[-1].startswith(
        "instance=0 request_timeout: GET /, no response after 30.0 s; its connection is closed, "
        "because its client takes no answer"
    )
    assert (connection.transport.written, connection.transport.is_closing()) == (b"", True)
    assert looked.row[cell("GET", "5xx")] == 1
    assert not looked.served.state.tasks


def test_a_client_that_has_left_is_no_error_of_the_server(looked: Looked, said: Said) -> None:
    connection = looked.ask()
    connection.transport.lose(None)
    looked.served.turn()
    looked.after(LIMIT)
    assert "its client has left" in said()[-1]
    assert (looked.row[cell("GET", "499")], looked.row[cell("GET", "5xx")]) == (1, 0)


def test_a_body_that_has_not_come_in_whole(looked: Looked, said: Said) -> None:
    connection = looked.ask(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo")
    transport = connection.transport
    ends: list[str] = []
    transport.can_write_eof = lambda: True
    transport.write_eof = lambda: ends.append("end")
    looked.after(LIMIT)
    assert ends == ["end"]  # and nothing more, as the task ends
    assert transport.written.startswith(b"HTTP/1.1 504 ")
    assert looked.served.counts == (0, 0, 0)
    assert connection not in looked.served.state.connections
    transport.abort()


class Failing:
    """An app that answers its cancellation with something else."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.raised: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope[NOTED] = lambda message: self.raised.append(KeyError(message["type"]))
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await self.step(receive, send)


@pytest.fixture
def ended_by(looked: Looked) -> Callable[[Any], bytes]:
    """What the client has got, where an app does this as it is cancelled."""

    def end(step: Any) -> bytes:
        app: Any = Failing(step)
        looked.served.config.loaded_app = app
        connection = looked.ask()
        connection.app = app
        looked.after(LIMIT)
        assert [str(it) for it in app.raised] == ["'http.response.start'", "'http.response.body'"]
        written: bytes = connection.transport.written
        return written

    return end


@pytest.mark.parametrize("whole", [True, False])
def test_what_the_app_sends_then_is_dropped(
    ended_by: Callable[[Any], bytes], said: Said, whole: bool
) -> None:
    async def step(receive: Any, send: Any) -> None:
        assert await receive() == {"type": "http.disconnect"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if whole:
            await send({"type": "http.response.body", "body": b"late"})

    written = ended_by(step)
    assert (written.count(b"HTTP/1.1"), b"late" in written) == (1, False)
    assert [line.split(":")[0] for line in said()] == [
        "instance=0 slow request",
        "instance=0 request_timeout",
    ]


def test_another_exception_of_the_app_is_logged(ended_by: Callable[[Any], bytes], said: Said) -> None:
    async def step(receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    assert ended_by(step).count(b"HTTP/1.1") == 1
    assert said()[2:] == ["Exception in ASGI application"]


def test_many_at_once_have_few_stacks(looked: Looked, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2 * MOST_STACKS):
        looked.ask()
    looked.after(SLOW)
    lines = [record.getMessage() for record in caplog.records]
    assert (len(lines), sum("it is here" in line for line in lines)) == (2 * MOST_STACKS, MOST_STACKS)


def test_a_thread_looks_while_the_loop_stands_still(looked: Looked, said: Said) -> None:
    looked.ask()
    looked.now += SLOW
    looked.long.look()
    looked.long.look()
    assert said() == ["instance=0 slow request: GET /, no response after 5.0 s; it is here:"]


def test_what_the_settings_ask_for(looked: Looked) -> None:
    def made(slow: float | None, limit: float | None, *, inline: bool = False) -> LongRequests | None:
        settings = Settings(workers=1, slow_request=slow, request_timeout=limit)
        return long_requests(looked.row, settings, lambda: "", inline=inline)

    assert made(None, None) is None
    assert made(None, 5.0, inline=True) is None
    assert made(None, 5.0) is not None
    assert made(5.0, 5.0, inline=True) is not None


# --- the stack ---


async def _outer(inner: Any) -> None:
    await inner


def _stack(awaited: Callable[[], Any]) -> str:
    async def main() -> str:
        task = asyncio.create_task(_outer(awaited()))
        await asyncio.sleep(0.05)
        try:
            return stack_of(task, threading.get_ident())
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return asyncio.run(main())


async def _inner() -> None:
    await asyncio.sleep(3600)


async def _another_task() -> None:
    await asyncio.create_task(_inner())


async def _steps() -> Any:
    yield 1
    await asyncio.sleep(3600)


async def _of_a_generator() -> None:
    async for _ in _steps():
        pass


@pytest.mark.parametrize(
    ("awaited", "last"),
    [(_inner, "in _inner"), (_another_task, "in _inner"), (_of_a_generator, "in _of_a_generator")],
)
def test_a_stack_follows_what_is_awaited(awaited: Any, last: str) -> None:
    stack = _stack(awaited)
    assert stack.index("in _outer") < stack.index(last)


def test_a_stack_of_the_thread_that_a_task_waits_for() -> None:
    from anyio import to_thread

    release = threading.Event()

    def waits() -> None:
        release.wait()

    async def main() -> str:
        task = asyncio.create_task(_outer(to_thread.run_sync(waits)))
        await asyncio.sleep(0.1)
        try:
            return stack_of(task, threading.get_ident())
        finally:
            release.set()
            await task

    assert "in waits\n    release.wait()" in asyncio.run(main())
