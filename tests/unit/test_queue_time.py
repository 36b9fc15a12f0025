"""How long requests waited: what proxies say of it, and what the kernel knows."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.ipc.scoreboard import BUCKETS, Item, Row, Scoreboard
from multicore_server.worker import queue_time
from multicore_server.worker.meter import meter_of
from multicore_server.worker.queue_time import (
    AHEAD,
    BURST,
    LONGEST,
    MOST,
    NEVER,
    PACE,
    QueueTime,
    idle,
    since_start,
)
from multicore_server.wsgi.bridge import IN_THREAD

NOW = 1_800_000_000.0  # seconds since the epoch

CYCLE = SimpleNamespace(scope={}, transport=None)

on_linux = pytest.mark.skipif(queue_time.TCP_INFO is None, reason="the kernel does not say it")


@pytest.fixture
def row() -> Row:
    return Scoreboard(1).row(0)


def observed(row: Row) -> list[float]:
    """Requests by bucket, and the sum of their seconds."""
    return [*row[Item.QUEUE : Item.QUEUE + len(BUCKETS) + 1], row[Item.QUEUE_SUM]]


# --- what proxies say


@pytest.mark.parametrize("before", [b"", b"t="])
@pytest.mark.parametrize(
    "value",
    [
        b"1799999999.750",  # nginx: t=${msec}
        b"1799999999750",  # Heroku
        b"1799999999750000",  # Apache: t=%t
        b"1799999999.750000",
        b"1799999999750.0",
        b" 1799999999.75\t",
    ],
)
def test_seconds_milliseconds_and_microseconds(before: bytes, value: bytes) -> None:
    text = value.replace(b" ", b" " + before) if before and value.startswith(b" ") else before + value
    assert since_start(text, NOW) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"t=", b"t=now", b"t=-1799999999", b"t=1_799_999_999", b"t=1e9", b"nan", b"inf",
        b"t=1799999999s",
        b"T=1799999999", b"t=1799999999, t=1799999999", b"t=0", b"t=" + b"9" * 1000, b"\xff",
        b"t=1799996399",  # an hour and two seconds ago
        b"t=1800000002",  # in the future
        b"t=1800000002000", b"t=1799996399000000",
    ],
)  # fmt: skip
def test_what_cannot_be_is_ignored(value: bytes) -> None:
    assert since_start(value, NOW) is None


def test_a_clock_that_is_a_little_ahead_makes_nothing_negative() -> None:
    assert since_start(b"t=1800000000.9", NOW) == 0.0
    assert since_start(b"t=1799996401", NOW) == pytest.approx(3599.0)


TEXTS = st.from_regex(rb"(t=)?[0-9]{1,20}(\.[0-9]{0,12})?", fullmatch=True)


@given(st.binary(max_size=40) | TEXTS, st.floats(0, 4e9))
def test_whatever_is_said_no_time_is_absurd(value: bytes, now: float) -> None:
    waited = since_start(value, now)
    assert waited is None or 0 <= waited <= LONGEST
    assert AHEAD < LONGEST


def test_what_a_proxy_has_said_counts(row: Row) -> None:
    queue = QueueTime(row)
    queue.told({}, b"t=%.3f" % (time.time() - 0.3))
    queue.told({}, b"t=%d" % ((time.time() + 100) * 1e6))
    found = observed(row)
    assert (found[BUCKETS.index(0.5)], sum(found[:-1])) == (1, 1)
    assert found[-1] == pytest.approx(0.3, abs=0.1)


# --- what the kernel knows


@on_linux
@pytest.mark.parametrize("loops", ["asyncio", "uvloop"])
def test_the_time_since_the_last_bytes_came(loops: str) -> None:
    module = pytest.importorskip(loops)
    module.run(_wait_with_bytes()) if loops == "uvloop" else asyncio.run(_wait_with_bytes())


async def _wait_with_bytes() -> None:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[float | None]] = loop.create_future()

    class Served(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            first = idle(self.transport)
            time.sleep(0.1)  # its thread is blocked
            found.set_result([first, idle(self.transport)])

    server = await loop.create_server(Served, "127.0.0.1", 0)
    client = socket.create_connection(server.sockets[0].getsockname())
    client.sendall(b"x")
    time.sleep(0.3)  # it lies in the accept queue
    first, second = await found
    client.close()
    server.close()
    assert 0.25 <= (first or 0) < 5
    assert (second or 0) - (first or 0) >= 0.08


def test_of_no_tcp_connection_it_knows_nothing() -> None:
    ours, theirs = socket.socketpair()

    class Held:
        def __init__(self, held: socket.socket | None) -> None:
            self.held = held

        def get_extra_info(self, _: str) -> socket.socket | None:
            return self.held

    with ours, theirs:
        assert idle(Held(ours)) is None
        ours.getpeername()  # its descriptor is open still
    assert idle(Held(ours)) is None
    assert idle(Held(None)) is None
    assert idle(None) is None


# --- how often it is asked


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """What the kernel says, the last one again and again."""
    said: list[float | None] = [0.3]
    monkeypatch.setattr(queue_time, "idle", lambda transport: said[0])
    monkeypatch.setattr(queue_time, "TCP_INFO", 11)
    return said


def test_a_worker_with_little_to_do_asks_for_each_request(row: Row, waited: list[float | None]) -> None:
    queue = QueueTime(row)
    assert [queue.ask(CYCLE, 10.0 + number * 2 * PACE) for number in range(50)] == [1] * 50
    assert observed(row)[BUCKETS.index(0.5)] == 50
    assert row[Item.QUEUE_SUM] == pytest.approx(15.0)


def test_requests_that_come_together_now_and_then_are_all_asked_for(
    row: Row, waited: list[float | None]
) -> None:
    queue = QueueTime(row)
    assert [queue.ask(CYCLE, 10.0) for _ in range(BURST)] == [1] * BURST
    assert queue.ask(CYCLE, 10.0) == 2
    assert [queue.ask(CYCLE, 20.0) for _ in range(BURST)] == [1] * BURST


@pytest.mark.parametrize("rate", [300, 1_000, 5_000, 50_000])  # requests a second
def test_a_busy_one_asks_for_one_in_many_which_counts_for_them(
    row: Row, waited: list[float | None], rate: int
) -> None:
    queue, asked, due, requests = QueueTime(row), 0, 1, 5 * rate
    for number in range(1, requests + 1):
        if number == due:
            asked += 1
            due += queue.ask(CYCLE, 10.0 + number / rate)
    assert requests - MOST < sum(observed(row)[:-1]) <= requests
    assert asked <= 1.2 * 5 / PACE + BURST + requests / MOST
    assert asked >= 5 / PACE / 2


def test_where_the_kernel_does_not_say_it_nothing_is_counted(row: Row, waited: list[float | None]) -> None:
    waited[0] = None
    QueueTime(row).ask(CYCLE, 10.0)
    assert observed(row) == [0.0] * (len(BUCKETS) + 2)


def test_once_a_proxy_says_it_the_kernel_is_not_asked(row: Row, waited: list[float | None]) -> None:
    queue = QueueTime(row)
    queue.told({}, b"nonsense")
    assert queue.ask(CYCLE, 10.0) == 1
    queue.told({}, b"%d" % time.time())
    assert queue.ask(CYCLE, 20.0) == NEVER
    assert sum(observed(row)[:-1]) == 2


def test_what_a_request_waits_for_a_thread_is_part_of_it(row: Row, waited: list[float | None]) -> None:
    queue, asked = QueueTime(row, has_threads=True), SimpleNamespace(scope={}, transport=None)
    queue.ask(asked, 10.0)
    assert sum(observed(row)) == 0
    asked.scope[IN_THREAD](0.5)
    assert observed(row)[BUCKETS.index(1.0)] == 1
    assert row[Item.QUEUE_SUM] == pytest.approx(0.8)
    queue.ask(asked, 20.0)
    queue.told(asked.scope, b"%.3f" % (time.time() - 3))
    asked.scope[IN_THREAD](0.1)  # once, by the proxy's clock
    assert (observed(row)[BUCKETS.index(5.0)], sum(observed(row)[:-1])) == (1, 2)


def test_elsewhere_than_on_linux_it_is_not_asked(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_time, "TCP_INFO", None)
    assert QueueTime(row).ask(CYCLE, 10.0) == NEVER


def test_it_is_asked_when_it_wants_to_be(row: Row) -> None:
    class Cycle:
        transport = None

        def __init__(self) -> None:
            self.scope = {"method": "GET", "raw_path": b"/", "client": None}

    asked: list[float] = []

    class Queue(QueueTime):
        def ask(self, cycle: Any, now: float) -> int:
            asked.append(now)
            return (2, 3, NEVER)[len(asked) - 1]

    meter = meter_of(row, None, Queue(row))
    at = []
    for number in range(20):
        before = len(asked)
        meter.begin(Cycle())
        if len(asked) > before:
            at.append(number)
    assert at == [0, 2, 5]
    assert not any(map(math.isnan, asked))
