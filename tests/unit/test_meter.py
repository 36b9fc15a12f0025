"""What is counted of a request, with uvicorn's own protocols on real sockets: every way that it can end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, Item, Row, Scoreboard
from multicore_server.worker import cycle, meter
from tests.unit.rows import cell

PATIENCE = 10.0  # seconds

Send = Callable[[dict[str, Any]], Awaitable[None]]
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

both = pytest.mark.parametrize("http", ["httptools", "h11"])


async def start(send: Send, status: Any = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send: Send, data: bytes = b"", more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


# --- apps: one for each way


async def answers(scope: Any, receive: Any, send: Send) -> None:
    await start(send, int(scope["query_string"] or 200), (b"content-length", b"0"))
    await body(send)


async def streams(scope: Any, receive: Any, send: Send) -> None:
    await start(send)
    for _ in range(3):
        await body(send, b"part", more=True)
    await body(send)


async def raises(scope: Any, receive: Any, send: Send) -> None:
    raise RuntimeError("the app's mistake")


async def raises_halfway(scope: Any, receive: Any, send: Send) -> None:
    await start(send)
    await body(send, b"part", more=True)
    raise RuntimeError("the app's mistake")


async def raises_afterwards(scope: Any, receive: Any, send: Send) -> None:
    await answers(scope, receive, send)
    raise RuntimeError("the app's mistake")


async def says_nothing(scope: Any, receive: Any, send: Send) -> None:
    pass


async def says_half(scope: Any, receive: Any, send: Send) -> None:
    await start(send)
    await body(send, b"part", more=True)


async def says_no_status(scope: Any, receive: Any, send: Send) -> None:
    await body(send, b"whole")


async def says_nonsense(scope: Any, receive: Any, send: Send) -> None:
    await start(send, 9999)
    await body(send)


async def says_it_twice(scope: Any, receive: Any, send: Send) -> None:
    await answers(scope, receive, send)
    await body(send)


async def is_cancelled(scope: Any, receive: Any, send: Send) -> None:
    raise asyncio.CancelledError


async def waits_for_the_end(scope: Any, receive: Any, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answers_too_late(scope: Any, receive: Any, send: Send) -> None:
    await waits_for_the_end(scope, receive, send)
    await answers(scope, receive, send)


async def streams_until_the_end(scope: Any, receive: Any, send: Send) -> None:
    await start(send)
    await body(send, b"part", more=True)
    await answers_nobody(receive, send)


async def answers_nobody(receive: Any, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    await body(send)


async def is_slow(scope: Any, receive: Any, send: Send) -> None:
    await asyncio.sleep(0.03)
    await answers(scope, receive, send)


# --- a connection


def request(method: str = "GET", status: int = 200, *headers: str) -> bytes:
    lines = [f"{method} /?{status} HTTP/1.1", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode()


CLOSE = request("GET", 200, "Connection: close")


def counted(http: str, app: Any, client: Client) -> Row:
    """The row after all that the client asks was answered, or given up."""
    row = Scoreboard(1).row(0)
    with cycle.installed(row):
        asyncio.run(asyncio.wait_for(_serve(http, app, client), PATIENCE))
    return row


async def _serve(http: Any, app: Any, client: Client) -> None:
    config = Config(
        app, http=http, ws="none", interface="asgi3", lifespan="off", log_config=None, access_log=False
    )
    config.load()
    state = ServerState()
    protocol: Any = config.http_protocol_class
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    await loop.connect_accepted_socket(
        lambda: protocol(config=config, server_state=state, app_state={}, _loop=loop), ours
    )
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    await client(reader, writer)
    writer.close()
    while state.connections or state.tasks:
        await asyncio.sleep(0.001)


def asking(*requests: bytes) -> Client:
    """Ask at once and read until the end."""

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(requests))
        await reader.read()

    return ask


async def leaving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Without a response."""
    writer.write(request())
    await asyncio.sleep(0.01)
    writer.transport.abort()


async def leaving_halfway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(request())
    await reader.readuntil(b"part")
    writer.transport.abort()


def found(row: Row) -> dict[str, int]:
    """What was counted, and that the histogram agrees."""
    every = {(method, code): int(row[cell(method, code)]) for method in METHODS for code in CODES}
    assert sum(every.values()) == sum(row[Item.DURATIONS : Item.DURATIONS + len(BUCKETS) + 1])
    return {f"{method} {code}": count for (method, code), count in every.items() if count}


# --- the ways


@both
@pytest.mark.parametrize(
    ("app", "code"),
    [
        (streams, "2xx"),
        (raises, "5xx"),
        (raises_halfway, "5xx"),
        (raises_afterwards, "2xx"),
        (says_nothing, "5xx"),
        (says_half, "5xx"),
        (says_no_status, "5xx"),
        (says_nonsense, "5xx"),
        (says_it_twice, "2xx"),
        (is_cancelled, "5xx"),
    ],
)
def test_every_way_is_counted_once(http: str, app: Any, code: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    assert found(counted(http, app, asking(CLOSE))) == {f"GET {code}": 1}


@both
@pytest.mark.parametrize(
    ("app", "client"),
    [
        (waits_for_the_end, leaving),
        (answers_too_late, leaving),
        (streams_until_the_end, leaving_halfway),
    ],
)
def test_a_client_that_left_is_499(http: str, app: Any, client: Client) -> None:
    assert found(counted(http, app, client)) == {"GET 499": 1}


@both
@pytest.mark.parametrize("status", [200, 204, 299, 301, 304, 404, 499, 500, 503, 599])
def test_codes(http: str, status: int) -> None:
    row = counted(http, answers, asking(request("GET", status, "Connection: close")))
    assert found(row) == {f"GET {status // 100}xx": 1}


@both
@pytest.mark.parametrize("method", [*METHODS[:7], "TRACE", "PROPFIND", "REPORT"])
def test_methods(http: str, method: str) -> None:
    name = method if method in METHODS else "other"
    row = counted(http, answers, asking(request(method, 200, "Connection: close")))
    assert found(row) == {f"{name} 2xx": 1}


def test_a_method_that_the_parser_lets_pass_makes_no_new_label() -> None:
    row = counted("h11", answers, asking(request("BREW", 200, "Connection: close")))
    assert found(row) == {"other 2xx": 1}


@both
def test_each_of_a_connection(http: str) -> None:
    row = counted(http, answers, asking(request(), request("POST", 404, "Content-Length: 0"), CLOSE))
    assert found(row) == {"GET 2xx": 2, "POST 4xx": 1}


@both
def test_what_is_no_request_is_not_counted(http: str) -> None:
    assert found(counted(http, answers, asking(b"\x16\x03\x01 nonsense\r\n\r\n"))) == {}


@both
def test_how_long_it_took(http: str) -> None:
    row = counted(http, is_slow, asking(CLOSE))
    assert 0.03 <= row[Item.DURATION_SUM] < 5
    taken = [bound for bound, count in zip(BUCKETS, row[Item.DURATIONS :], strict=False) if count]
    assert len(taken) == 1
    assert row[Item.DURATION_SUM] <= taken[0]


@both
def test_nothing_else_of_the_row_is_written(http: str) -> None:
    row = counted(http, answers, asking(request(), CLOSE))
    ours = {*range(Item.REQUESTS, Item.DURATION_SUM + 1)}
    assert [item for item, value in enumerate(row) if value and item not in ours] == []


@both
def test_it_is_counted_before_the_client_has_the_response(http: str) -> None:
    row = Scoreboard(1).row(0)
    seen: list[dict[str, int]] = []

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(20):
            writer.write(request())
            await reader.readuntil(b"\r\n\r\n")
            seen.append(found(row))

    with cycle.installed(row):
        asyncio.run(asyncio.wait_for(_serve(http, answers, look), PATIENCE))
    assert seen == [{"GET 2xx": number} for number in range(1, 21)]


def ends_later(status: int, length: bytes = b"", *parts: bytes) -> tuple[Any, asyncio.Event]:
    """An app that has more to do when its client has all of the response."""
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Send) -> None:
        await start(send, status, *([(b"content-length", length)] if length else []))
        for part in parts:
            await body(send, part, more=True)
        await go_on.wait()
        await body(send)

    return app, go_on


@both
@pytest.mark.parametrize(
    ("method", "response", "code"),
    [
        ("GET", (204,), "2xx"),
        ("GET", (304,), "3xx"),
        ("GET", (200, b"0"), "2xx"),
        ("GET", (404, b"8", b"part", b"part"), "4xx"),
        ("HEAD", (200, b"8"), "2xx"),
        ("HEAD", (200,), "2xx"),
        ("HEAD", (200, b"8", b"part", b"part"), "2xx"),
    ],
)
def test_it_is_counted_before_the_client_has_it_also_where_the_app_goes_on(
    http: str, method: str, response: Any, code: str
) -> None:
    row = Scoreboard(1).row(0)
    seen: list[dict[str, int]] = []

    async def main() -> None:
        app, go_on = ends_later(*response)

        async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(3):
                writer.write(request(method))
                await reader.readuntil(b"\r\n\r\n")
                if method == "GET" and response[2:]:
                    await reader.readuntil(b"partpart")
                seen.append(found(row))
                go_on.set()
                await asyncio.sleep(0.01)
                go_on.clear()

        await _serve(http, app, look)

    with cycle.installed(row):
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert seen == [{f"{method} {code}": number} for number in (1, 2, 3)]
    assert found(row) == seen[-1]


@both
@pytest.mark.parametrize("length", [b"9", b""])
def test_a_response_of_which_the_client_lacks_something_is_not_counted_yet(http: str, length: bytes) -> None:
    row = Scoreboard(1).row(0)
    seen: list[dict[str, int]] = []

    async def main() -> None:
        app, go_on = ends_later(200, length, b"part", b"part")

        async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(request())
            await reader.readuntil(b"part")
            seen.append(found(row))
            writer.transport.abort()
            await asyncio.sleep(0.01)
            go_on.set()

        await _serve(http, app, look)

    with cycle.installed(row):
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert seen == [{}]
    assert found(row) == {"GET 499": 1}


class Recorded:
    """A cycle whose client has each message at once; it notes what the worker had in progress then."""

    def __init__(self, row: Row) -> None:
        self.scope: dict[str, Any] = {
            "method": "GET",
            "raw_path": b"/",
            "query_string": b"",
            "headers": [],
            "client": None,
        }
        self.disconnected = False
        self.in_hand = [row[Item.IN_HAND]]
        self._row = row

    async def run_asgi(self, app: Callable[[Send], Awaitable[None]]) -> None:
        await app(self.send)
        self.in_hand.append(self._row[Item.IN_HAND])

    async def send(self, _message: Any) -> None:
        self.in_hand.append(self._row[Item.IN_HAND])


async def answers_and_goes_on(send: Send) -> None:
    await start(send)
    await body(send, b"all")
    await asyncio.sleep(0)


async def answers_half(send: Send) -> None:
    await start(send)
    await body(send, b"part", more=True)


@pytest.mark.parametrize(
    ("app", "in_hand"), [(answers_and_goes_on, [0, 1, 0, 0]), (answers_half, [0, 1, 1, 1])]
)
def test_a_request_is_no_load_when_its_client_has_the_response(app: Any, in_hand: list[int]) -> None:
    row = Scoreboard(1).row(0)
    made = meter.metered(Recorded, meter.meter_of(row), row)(row)
    asyncio.run(made.run_asgi(app))
    assert made.in_hand == in_hand
    assert row[Item.IN_HAND] == 0


def test_installing_is_undone() -> None:
    before = [module.RequestResponseCycle for module in meter.MODULES]
    with cycle.installed(Scoreboard(1).row(0)):
        assert [module.RequestResponseCycle for module in meter.MODULES] != before
    assert [module.RequestResponseCycle for module in meter.MODULES] == before


# --- which cycles are counted


def test_the_cycles_beside_a_protocol_are_counted_without_a_walk_through_all_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newer protocol may use a cycle of a module beside its own."""

    class Cycle:
        def __init__(self) -> None:
            self.scope, self.disconnected = {}, False  # type: ignore[var-annotated]

        async def run_asgi(self) -> None: ...

        async def send(self) -> None: ...

    package, own, beside, elsewhere = (
        ModuleType(f"newer{name}") for name in ("", ".impl", ".cycles", "_other")
    )
    package.impl, package.cycles = own, beside  # type: ignore[attr-defined]
    for module in (beside, elsewhere):
        module.RequestResponseCycle = Cycle  # type: ignore[attr-defined]
    for module in (package, own, beside, elsewhere):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    protocol = type("Protocol", (asyncio.Protocol,), {"__module__": "newer.impl"})

    class Modules(dict[str, ModuleType]):
        def items(self) -> Any:
            raise AssertionError("each of them is written to")

        values = items

    monkeypatch.setattr(sys, "modules", Modules(sys.modules))
    assert meter.modules_of(protocol) == (beside,)
