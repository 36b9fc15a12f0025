"""A response that is sent in one piece is the one that uvicorn would have sent, whatever the app does."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from multicore_server.connections.cycles import ADDED
from multicore_server.connections.factory import movable
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker import cycle as module
from multicore_server.worker import meter
from multicore_server.worker.cycle import JOINED, installed
from tests.unit.fake_transport import GET
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

    def can_write_eof(self) -> bool:
        return False

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
def _silence() -> None:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


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
    # Older uvicorns look for "Connection: close" when they answer, our protocol tells them before; and to
    # HTTP/1.0 they do not say that they close.
    REQUESTS = REQUESTS.filter(lambda request: b"close" not in request and b"1.0" not in request)
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


# --- whole responses that wait for each other


class Together:
    """Several connections of one worker whose requests come in the same turn of the loop."""

    def __init__(self, app: Any, count: int = 3, request: bytes = GET) -> None:
        self.order: list[str] = []
        self.row = Scoreboard(1).row(0)
        self._app = app
        self._count = count
        self._request = request

    async def _connect(self) -> list[Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.order.append("called")
            await self._app(scope, receive, send)

        config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        self.state = ConnectionsState(self.row, OpenGate())
        protocol = movable(HttpToolsProtocol)
        made = []
        for _ in range(self._count):
            transport: Any = NotingTransport(self.order)
            connection = protocol(config, self.state, {}, asyncio.get_running_loop())
            connection.connection_made(transport)
            made.append(connection)
        return made

    def play(self, *, brisk: bool = True) -> list[Any]:
        async def main() -> list[Any]:
            made = await self._connect()
            self.state.is_brisk = brisk
            for connection in made:
                connection.data_received(self._request)
            while self.state.tasks:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            for connection in made:
                connection._end_timer()
            return [connection.transport for connection in made]

        with installed(self.row):
            return asyncio.run(main())


class NotingTransport(Transport):
    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order

    def write(self, data: bytes) -> None:
        self._order.append("written")
        super().write(data)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


@pytest.fixture
def _by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(meter, "perf_counter", clock)


by_the_clock = pytest.mark.usefixtures("_by_the_clock")


def takes(seconds: float, *headers: tuple[bytes, bytes], size: int = 2) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.now += seconds
        await send(start(200, *headers))
        await send(body(b"x" * size))

    return app


QUICKLY = 50e-6  # seconds
TOGETHER = ["called"] * 3 + ["written"] * 3


@by_the_clock
def test_responses_of_one_turn_are_written_when_all_are_made() -> None:
    together = Together(takes(QUICKLY))
    transports = together.play()
    assert together.order == TOGETHER
    assert {b"".join(it.writes) for it in transports} == {
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nxx\r\n0\r\n\r\n"
    }
    assert together.state.total_requests == together.row[cell("GET", "2xx")] == 3
    assert together.row[Item.IN_HAND] == 0


@by_the_clock
@pytest.mark.parametrize(
    ("app", "request_", "brisk"),
    [
        (takes(0.0), GET, True),  # its client is awake
        (takes(2e-3), GET, True),  # the others may take as long
        (takes(QUICKLY), GET, False),  # something blocks this loop now and then
        (takes(QUICKLY, size=JOINED + 1), GET, True),
        (takes(QUICKLY, (b"connection", b"close")), GET, True),
        (takes(QUICKLY), GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), True),
    ],
    ids=["very quick", "slow", "blocked", "large", "app closes", "client closes"],
)
def test_others_are_written_at_once(app: Any, request_: bytes, brisk: bool) -> None:
    together = Together(app, request=request_)
    together.play(brisk=brisk)
    assert [it for it in together.order if it == "called"] == ["called"] * 3
    assert together.order[1] == "written"


@by_the_clock
def test_one_that_is_alone_is_written_at_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await takes(QUICKLY)(scope, receive, send)
        together.order.append("returned")

    together = Together(app, count=1)
    together.play()
    assert together.order == ["called", "written", "returned"]


@by_the_clock
def test_none_waits_for_long() -> None:
    together = Together(takes(0.9e-3), count=8)
    together.play()
    assert together.order[:7] == ["called"] * 3 + ["written"] * 3 + ["called"]


@by_the_clock
def test_what_an_app_does_behind_its_response_comes_behind_it() -> None:
    async def sends_more(scope: Any, receive: Any, send: Any) -> None:
        await takes(QUICKLY)(scope, receive, send)
        try:
            await send(body(b"more"))
        except RuntimeError as exc:
            raised.append(str(exc))

    raised: list[str] = []
    together = Together(sends_more)
    transports = together.play()
    assert len(raised) == 3
    assert raised[0].endswith("after response already completed.")
    assert all(b"more" not in b"".join(it.writes) for it in transports)


@by_the_clock
def test_an_app_that_fails_behind_its_response_has_it_sent() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await takes(QUICKLY)(scope, receive, send)
        raise RuntimeError("the app's mistake")

    together = Together(fails)
    transports = together.play()
    assert all(b"".join(it.writes).endswith(b"xx\r\n0\r\n\r\n") for it in transports)
    assert together.row[cell("GET", "2xx")] == 3


@by_the_clock
def test_a_client_that_leaves_meanwhile_gets_nothing() -> None:
    async def leaves(scope: Any, receive: Any, send: Any) -> None:
        await takes(QUICKLY)(scope, receive, send)
        connection = send.__self__.on_response.__self__
        connection.connection_lost(ConnectionResetError())

    together = Together(leaves)
    assert [it.writes for it in together.play()] == [[], [], []]
    assert together.row[Item.CONNECTIONS] == 0


@by_the_clock
def test_a_request_behind_it_waits_until_it_is_sent() -> None:
    together = Together(takes(QUICKLY), request=GET + GET)
    transports = together.play()
    assert together.state.total_requests == 6
    assert [b"".join(it.writes).count(b"HTTP/1.1 200 OK") for it in transports] == [2, 2, 2]


def test_there_is_room_for_what_a_request_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found: set[str] = set()
    with installed(Scoreboard(1).row(0)):
        made: Any = httptools_impl.RequestResponseCycle
        complete = made._complete

        def note(cycle: Any) -> None:
            found.update(vars(cycle))
            complete(cycle)

        monkeypatch.setattr(made, "_complete", note)
        assert play([start(200, (b"content-length", b"2")), body(b"ok")]).transport.writes
        given: Any = vars(THEIRS(*[None] * 11))  # type: ignore[arg-type]
    assert found - ADDED.keys() <= given.keys()
    assert len(found | ADDED.keys()) <= 30, "Python makes room for no more"
