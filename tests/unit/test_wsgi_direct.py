"""A WSGI request that is served without a detour is served as over ASGI, whatever app and client do."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from uvicorn import Config

from multicore_server.connections.factory import movable
from multicore_server.connections.inline import InlineGate
from multicore_server.connections.spool import Spools
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker.cycle import installed
from multicore_server.wsgi import direct as direct_module
from multicore_server.wsgi.bridge import WSGIBridge
from multicore_server.wsgi.direct import Direct
from multicore_server.wsgi.turn import Turn
from tests.unit.fake_transport import GET, LAST, POST, TURNS, FakeTransport
from tests.unit.rows import cell

HEAD = b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
EXPECTING = POST.replace(b"content-length", b"expect: 100-continue\r\ncontent-length")
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
DATE = (b"date", b"Sat, 28 Nov 2026 19:20:00 GMT")


class Script(NamedTuple):
    """What the app does."""

    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = ()
    written: tuple[bytes, ...] = ()  # by write()
    blocks: tuple[bytes, ...] = (b"hello",)
    result: str = "list"
    fails: str = ""  # where
    error: type[BaseException] = RuntimeError


class Result:
    def __init__(self, script: Script, seen: list[Any]) -> None:
        self._script = script
        self._seen = seen
        self._blocks = iter(script.blocks)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self._blocks, None)
        if block is None:
            if self._script.fails == "at the end":
                raise self._script.error("the app's mistake")
            raise StopIteration
        if self._script.fails == "in a block":
            raise self._script.error("the app's mistake")
        return block

    def close(self) -> None:
        self._seen.append("close")
        if self._script.fails == "in close":
            raise self._script.error("the app's mistake")


class App:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        script = self.script
        assert asyncio._get_running_loop() is None
        known = {key: value for key, value in environ.items() if not key.startswith("wsgi.")}
        self.seen.append((known, environ["wsgi.input"].read()))
        if script.fails == "early":
            raise script.error("the app's mistake")
        write = start_response(script.status, list(script.headers))
        for data in script.written:
            write(data)
        if script.fails == "late":
            raise script.error("the app's mistake")
        return list(script.blocks) if script.result == "list" else Result(script, self.seen)


class Outcome(NamedTuple):
    written: bytes
    closed: bool
    seen: list[Any]
    counts: list[float]
    in_hand: float
    logged: list[str]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


async def _play(script: Script, requests: tuple[bytes, ...], direct: bool) -> Outcome:
    app, row, loop = App(script), Scoreboard(1).row(0), asyncio.get_running_loop()
    bridge = WSGIBridge(app)
    config = Config(bridge, ws="none", http="httptools", lifespan="off", log_config=None, access_log=False,
                    timeout_keep_alive=3600)  # fmt: skip
    config.load()
    state = ConnectionsState(row, InlineGate(lambda _: True))
    state.spools = Spools()
    state.default_headers = [DATE]
    if direct:
        state.direct = Direct(bridge, lambda _: False, state)
    made: Any = config.http_protocol_class
    records = Records()
    loggers = [logging.getLogger(name) for name in ("gunicorn.error", "uvicorn.error")]
    with installed(row):
        protocol = movable(made)(config, state, {}, loop)
        transport = FakeTransport(loop)
        transport.set_protocol(protocol)
        for logger in loggers:
            logger.addHandler(records)
        try:
            protocol.connection_made(transport)
            for request in requests:
                if not transport.is_closing():
                    protocol.data_received(request)
                for _ in range(2 * TURNS):
                    await asyncio.sleep(0)
            closed = transport.is_closing()
            transport.close()
            for _ in range(TURNS):
                await asyncio.sleep(0)
        finally:
            for logger in loggers:
                logger.removeHandler(records)
    assert not state.tasks
    assert bridge.turn.take(), "the next request can have the app"
    counts = list(row[Item.REQUESTS : Item.DURATIONS])
    return Outcome(transport.written, closed, app.seen, counts, row[Item.IN_HAND], records.lines)


def play(script: Script, *requests: bytes, direct: bool = True) -> Outcome:
    return asyncio.run(_play(script, requests or (GET,), direct))


LENGTHS = ((), (("Content-Length", "5"),), (("Content-Length", "3"),), (("Content-Length", "9"),))
OTHERS = ((), (("X-A", "1"), ("Set-Cookie", "a=b")), (("Connection", "close"),), (("Bad Name", "x"),),
          (("X-Bad", "a\nb"),), (("Transfer-Encoding", "chunked"),))  # fmt: skip
BLOCKS: list[Any] = [
    (b"hello",), (), (b"",), (b"hel", b"lo"), (b"", b"hello"), (b"x" * 40_000,), ("no bytes",),
]  # fmt: skip
scripts = st.builds(
    Script,
    status=st.sampled_from(["200 OK", "404 Not Found", "204 No Content", "304 Not Modified", "bad"]),
    headers=st.builds(lambda one, other: one + other, st.sampled_from(LENGTHS), st.sampled_from(OTHERS)),
    written=st.sampled_from([(), (), (b"hel",), (b"", b"hello")]),
    blocks=st.sampled_from(BLOCKS),
    result=st.sampled_from(["list", "iterator"]),
    fails=st.sampled_from(["", "", "", "early", "late", "in a block", "at the end", "in close"]),
    error=st.sampled_from([RuntimeError, SystemExit]),
)
PIPELINED, BEHIND_A_BODY = (GET + GET,), (POST + GET,)
WAYS = (
    (GET,), (HEAD,), (OLD,), (LAST,), (POST,), (CHUNKED,), (GET, GET), PIPELINED, BEHIND_A_BODY,
    (POST[:-2], POST[-2:]), (EXPECTING,), (GET[:9], GET[9:]), (POST[:-2],), (b"GET / HTTP/9\r\n\r\n",),
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(scripts, st.sampled_from(WAYS))
def test_it_is_served_as_over_asgi(script: Script, requests: tuple[bytes, ...]) -> None:
    # What is pipelined behind such an end is cut off, in one turn of the loop or the next.
    assume(script.error is RuntimeError or requests not in (PIPELINED, BEHIND_A_BODY))
    ours, usual = play(script, *requests), play(script, *requests, direct=False)
    assert ours == usual


def test_a_whole_response_needs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Direct, "_in_task", None)
    outcome = play(Script(headers=(("Content-Type", "text/plain"),)), GET, POST, HEAD)
    assert outcome.written.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert outcome.counts[cell("GET", "2xx") - Item.REQUESTS] == 1
    assert [body for _, body in outcome.seen] == [b"", b"body", b""]
    assert outcome.in_hand == 0


def test_requests_of_one_turn_are_served_in_their_order_each_with_its_own_end() -> None:
    outcome = play(Script(headers=(("Content-Length", "5"),)), GET * 3, GET, POST + GET)
    assert outcome.written.count(b"hello") == 6
    assert outcome.in_hand == 0


@pytest.mark.parametrize("script", [Script(), Script(result="iterator"), Script(written=(b"hel",))])
@pytest.mark.parametrize("direct", [True, False])
def test_a_request_leaves_nothing_to_the_garbage_collector(script: Script, direct: bool) -> None:
    """Its work grows with the app's heap: an app whose requests need it never pays for ours."""
    play(script, GET)  # what is made once
    gc.collect()
    gc.disable()
    try:
        left = []
        for requests in ((GET,), (GET,) * 20):
            play(script, *requests, direct=direct)
            left.append(gc.collect())
    finally:
        gc.enable()
    notes = 2 * (20 - 1)  # a dictionary and a tuple for each request, by the app
    assert left[1] - left[0] <= notes


class Leaving(set[Any]):
    """Connections whose descriptors are open for so many looks."""

    looks = 0

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks >= 0


@pytest.mark.parametrize("looks", [0, 2, 1000])
def test_the_app_is_called_when_what_siblings_have_is_closed_here(
    looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its client would wait for the connection's end as long as the app takes. Not for ever."""
    leaving = Leaving()
    leaving.looks = looks
    monkeypatch.setattr(InlineGate, "leaving", property(lambda _: leaving, lambda *_: None), raising=False)
    assert play(Script(), GET).seen
    assert leaving.looks == (-1 if looks < 1000 else 1000 - direct_module.TURNS - 1)


def test_nobody_comes_in_between_those_who_wait_for_their_turn() -> None:
    async def main() -> None:
        turn, order = Turn(), []

        async def one(name: str) -> None:
            async with turn:
                order.append(name)
                await asyncio.sleep(0)

        assert turn.take()
        waiting = [asyncio.create_task(one(name)) for name in "abc"]
        await asyncio.sleep(0)
        waiting[1].cancel()
        turn.give()
        assert not turn.take(), "it is the first one's"
        await asyncio.wait(waiting)
        assert order == ["a", "c"]
        assert turn.take()

    asyncio.run(main())


def test_one_who_is_cancelled_when_its_turn_has_come_gives_it_on() -> None:
    async def main() -> None:
        turn = Turn()

        async def one() -> None:
            async with turn:
                raise AssertionError("it was cancelled")

        assert turn.take()
        waiting = asyncio.create_task(one())
        await asyncio.sleep(0)
        turn.give()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert turn.take()

    asyncio.run(main())
