"""Parts of a response that the app gives at once leave at once, and none waits for the app's next wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicore_server.worker import cycle as module
from multicore_server.worker.cycle import JOINED, MOST_JOINED
from tests.unit.test_cycle import Clock, Together, Transport, body, start

clock = Clock()
END = b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def _by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "perf_counter", clock)


def stream(*steps: Any) -> Any:
    """An app: bytes are a part, a number is seconds that it takes, and "turn" lets the loop turn."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for step in steps:
            if step == "turn":
                await asyncio.sleep(0)
            elif isinstance(step, bytes):
                await send(body(step, more=True))
            else:
                clock.now += step
        await send(body(b""))

    return app


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def sent(*steps: Any, joins: bool = True) -> list[bytes]:
    """What was written to the one client, write by write; the first has the head."""
    together = Together(stream(*steps), count=1)
    connect = together._connect

    async def connected() -> list[Any]:
        made = await connect()
        together.state.joins_chunks = joins
        return made

    together._connect = connected  # type: ignore[method-assign]
    transport: Transport
    (transport,) = together.play()
    assert transport.writes[0].startswith(b"HTTP/1.1 200 OK\r\n")
    return [transport.writes[0].partition(b"\r\n\r\n")[2], *transport.writes[1:]]


def test_the_first_part_leaves_at_once_and_those_right_behind_it_together() -> None:
    assert sent(b"1", b"2", b"3", "turn", b"4") == [chunk(b"1"), chunk(b"2") + chunk(b"3"), chunk(b"4") + END]


def test_the_last_part_takes_along_what_waits() -> None:
    assert sent(b"1", b"2", b"3") == [chunk(b"1"), chunk(b"2") + chunk(b"3") + END]


def test_none_waits_while_the_app_takes_its_time() -> None:
    """What waits leaves with the next part, if the loop has not turned by then."""
    found = sent(b"1", b"2", MOST_JOINED, b"3", MOST_JOINED, b"4", "turn", "turn")
    assert found == [chunk(b"1"), chunk(b"2") + chunk(b"3"), chunk(b"4"), END]


def test_not_more_is_joined_than_is_cheap_to_copy() -> None:
    part = b"x" * (JOINED // 2)
    found = sent(b"1", part, part, part, b"x" * (JOINED + 1), "turn", "turn")
    assert b"".join(found) == b"".join(map(chunk, (b"1", part, part, part, b"x" * (JOINED + 1)))) + END
    assert max(map(len, found)) < 3 * JOINED
    assert len(found) < 6


def test_a_wsgi_app_is_sent_block_by_block() -> None:
    """PEP 3333: a server must not delay a block."""
    assert sent(b"1", b"2", b"3", joins=False) == [chunk(b"1"), chunk(b"2"), chunk(b"3"), END]


@pytest.mark.parametrize("end", ["fails", "leaves"])
def test_what_waits_is_sent_where_the_app_fails_and_dropped_where_the_client_leaves(end: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"1", more=True))
        await send(body(b"2", more=True))
        if end == "leaves":
            send.__self__.on_response.__self__.connection_lost(ConnectionResetError())
        raise RuntimeError("the app's mistake")

    transport: Transport
    (transport,) = Together(app, count=1).play()
    behind = [] if end == "leaves" else [chunk(b"2")]
    assert transport.writes[1:] == behind


PARTS = st.one_of(
    st.sampled_from(["turn", 1e-5, MOST_JOINED / 3, MOST_JOINED]),
    st.sampled_from([b"", b"a", b"data: 1\n\n", b"x" * 5000, b"y" * 20_000]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=20))
def test_it_is_the_same_stream(steps: list[Any]) -> None:
    expected = b"".join(chunk(step) for step in steps if isinstance(step, bytes) and step) + END
    assert b"".join(sent(*steps)) == b"".join(sent(*steps, joins=False)) == expected


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    yield
    clock.now = Clock.now
