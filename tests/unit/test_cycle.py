"""A response that is sent in one piece is the one that uvicorn would have sent, whatever the app does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import JOINED, installed
from tests.unit.rows import cell

THEIRS = httptools_impl.RequestResponseCycle


class Transport:
    """Notes what is written, and when: a list for each turn of the loop."""

    def __init__(self) -> None:
        self.turns: list[list[bytes]] = [[]]
        self.closed = False

    @property
    def writes(self) -> list[bytes]:
        return [data for turn in self.turns for data in turn]

    def write(self, data: bytes) -> None:
        if data and not self.closed:
            self.turns[-1].append(bytes(data))

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Outcome:
    """What a client has got, and what the app has seen."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.raised: list[str] = []
        self.requests = 0


async def _play(script: list[Any], request: bytes, defaults: list[Any]) -> Outcome:
    outcome = Outcome()

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        for step in script:
            if step == "turn":
                await asyncio.sleep(0)
            elif step == "fail":
                raise RuntimeError("the app's mistake")
            elif step == "odd":
                return "odd"
            else:
                try:
                    await send(dict(step))
                except Exception as exc:  # noqa: BLE001 - it is compared
                    outcome.raised.append(repr(exc))
        return None

    config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False)
    config.load()
    state = ServerState()
    state.default_headers = defaults
    protocol = HttpToolsProtocol(config, state, {}, asyncio.get_running_loop())
    transport: Any = outcome.transport
    protocol.connection_made(transport)
    protocol.data_received(request)
    while state.tasks:
        outcome.transport.turns.append([])
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    outcome.requests = state.total_requests
    protocol.connection_lost(None)
    return outcome


def play(script: list[Any], request: bytes = b"", defaults: Any = ()) -> Outcome:
    asked = request or b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    return asyncio.run(_play(script, asked, list(defaults)))


def start(status: Any = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    logger = logging.getLogger("uvicorn.error")
    before, logger.level = logger.level, logging.CRITICAL
    yield
    logger.level = before


HEADERS = st.sampled_from([
    (b"content-type", b"text/plain"), (b"X-Upper", b"1"),
    (b"content-length", b"5"), (b"Content-Length", b"0"),
    (b"content-length", b"x"), (b"content-length", b" 5"), (b"transfer-encoding", b"chunked"),
    (b"transfer-encoding", b"gzip"), (b"connection", b"close"), (b"connection", b"keep-alive"),
    (b"bad name", b"1"), (b"bad", b"a\r\nb"), (b"set-cookie", b"a=1"), (b"long", b"v" * 200),
])  # fmt: skip
STARTS = st.builds(start, st.sampled_from([200, 204, 304, 404, 500, 99, 999, 600]), *[HEADERS] * 2)
BODIES = st.builds(body, st.sampled_from([b"", b"hello", b"hel", b"x" * 20_000]), st.booleans())
OTHERS = st.sampled_from([
    "turn", "turn", "fail", "odd", {"type": "http.response.trailers"}, {"type": "nonsense"},
    {"type": "http.response.start", "status": 200}, {"type": "http.response.body"},
    {"type": "http.response.start", "status": 200, "headers": [[b"a", b"b"]]},
    {"type": "http.response.start", "status": 200, "headers": [("a", "b")]},
    {"type": "http.response.start", "status": 200, "headers": [(b"a",)]},
    {"type": "http.response.start", "status": "200"},
])  # fmt: skip
REQUESTS = st.sampled_from([
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n",
])  # fmt: skip
if hasattr(httptools_impl, "CLOSE_HEADER"):
    # Older uvicorns look for "Connection: close" when they answer; our protocol tells them before.
    REQUESTS = REQUESTS.filter(lambda request: b"close" not in request)
DEFAULTS = st.sampled_from([
    (), ((b"date", b"today"), (b"server", b"uvicorn")), ((b"connection", b"close"),), ((b"bad name", b"1"),),
])  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.lists(STARTS | BODIES | OTHERS, max_size=6), REQUESTS, DEFAULTS)
def test_it_is_uvicorns_response(script: list[Any], request: bytes, defaults: Any) -> None:
    theirs = play(script, request, defaults)
    with installed(Scoreboard(1).row(0)):
        ours = play(script, request, defaults)
    assert b"".join(ours.transport.writes) == b"".join(theirs.transport.writes)
    assert ours.transport.closed == theirs.transport.closed
    assert (ours.raised, ours.requests) == (theirs.raised, theirs.requests)


@settings(max_examples=300, deadline=None)
@given(STARTS, st.lists(BODIES | st.just("turn"), max_size=5), REQUESTS, DEFAULTS)
def test_it_is_uvicorns_response_where_the_app_begins_well(
    first: Any, rest: list[Any], request: bytes, defaults: Any
) -> None:
    test_it_is_uvicorns_response.hypothesis.inner_test([first, *rest], request, defaults)  # type: ignore[attr-defined]


def ours(script: list[Any], request: bytes = b"") -> Outcome:
    row = Scoreboard(1).row(0)
    with installed(row):
        return play(script, request)


def test_head_and_body_are_one_write() -> None:
    assert len(ours([start(), body(b"hello")]).transport.writes) == 1
    assert len(ours([start(200, (b"content-length", b"5")), body(b"hello")]).transport.writes) == 1
    assert len(play([start(), body(b"hello")]).transport.writes) == 2


def test_a_large_body_is_not_copied_and_goes_at_once_as_well() -> None:
    (whole,) = ours([start(), body(b"x" * (JOINED + 1))]).transport.writes
    assert whole.endswith(b"x\r\n0\r\n\r\n")


def test_a_head_whose_body_comes_later_is_on_its_way_when_the_loop_turns() -> None:
    found = ours([start(), *["turn"] * 3, body(b"part", more=True), *["turn"] * 2, body(b"")]).transport
    turns = [b"".join(turn) for turn in found.turns if turn]
    assert turns[0].endswith(b"\r\n\r\n")
    assert turns[1:] == [b"4\r\npart\r\n", b"0\r\n\r\n"]


def test_the_first_part_of_a_stream_goes_with_the_head() -> None:
    found = ours([start(), body(b"part", more=True), "turn", "turn", body(b"")]).transport.writes
    assert len(found) == 2
    assert found[0].endswith(b"4\r\npart\r\n")


@pytest.mark.parametrize("end", ["fail", "odd"])
def test_an_app_that_fails_behind_its_head_has_it_sent_before_the_connection_closes(end: str) -> None:
    found = ours([start(), end]).transport
    assert found.writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert found.closed


def test_what_waits_when_the_client_leaves_is_dropped() -> None:
    row = Scoreboard(1).row(0)

    async def main() -> Transport:
        config = Config(
            app, ws="none", lifespan="off", log_config=None, access_log=False, proxy_headers=False
        )
        config.load()
        state = ServerState()
        protocol = HttpToolsProtocol(config, state, {}, asyncio.get_running_loop())
        held.append(protocol)
        transport: Any = Transport()
        protocol.connection_made(transport)
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while state.tasks:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        found: Transport = transport
        return found

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        held[0].connection_lost(ConnectionResetError())
        await send(body(b"nobody hears it"))

    held: list[Any] = []
    with installed(row):
        assert asyncio.run(main()).writes == []
    assert row[cell("GET", "499")] == 1
