"""What a client does not take goes into a spool: in order, in whole, bounded, and nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.connections import spool
from multicore_server.connections.limits import Limits
from multicore_server.connections.spool import Spool, Spools
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.worker.cycle import installed
from tests.support.descriptors import descriptors
from tests.unit.strict.served import Client, Served, run, seen

BLOCK = 100_000
FREE = SimpleNamespace(f_bavail=2**30, f_frsize=4096)


@pytest.fixture(autouse=True)
def _much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: FREE)


def block(number: int) -> bytes:
    return bytes([number % 251]) * BLOCK


def drained(it: Spool) -> bytes:
    parts = []
    while it.size:
        parts.append(it.take())
    return b"".join(parts)


# --- the spool


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.none()), max_size=60))
def test_what_is_put_is_taken_in_order(steps: list[bytes | None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", 30)
        patch.setattr(spool, "BLOCK", 16)
        patch.setattr(spool, "LOOK", 32)
        spools = Spools(room=10_000)
        it, put, taken = Spool(spools), b"", b""
        for step in steps:
            if step is not None:
                it.put(step)
                put += step
            elif it.size:
                taken += it.take()
            assert spools.room == 10_000 - it.size == 10_000 - len(put) + len(taken)
        taken += drained(it)
        it.close()
    assert taken == put
    assert spools.room == 10_000


def test_a_spool_is_bounded_and_so_are_all_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "EACH", 3 * BLOCK)
    spools = Spools(room=5 * BLOCK)
    one, other = Spool(spools), Spool(spools)
    for _ in range(2):
        one.put(block(1))
        assert not one.is_full
    one.put(block(2))
    assert one.is_full
    assert not other.is_full
    other.put(block(3) * 2)
    assert other.is_full
    one.close()
    assert not other.is_full
    other.close()
    assert spools.room == 5 * BLOCK


def test_it_leaves_room_for_others_in_the_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=3000, f_frsize=1000))
    it = Spool(Spools())
    count = 0
    while not it.is_full:
        it.put(block(count))
        count += 1
    assert 700_000 < it.size < 2_200_000
    assert drained(it) == b"".join(map(block, range(count)))


@pytest.mark.parametrize("room", [0, 1, 250_000])
def test_where_the_file_system_is_full_all_is_kept_and_in_order(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write = os.pwrite

    def pwrite(descriptor: int, data: Any, offset: int) -> int:
        if offset >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: room - offset], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    it = Spool(Spools())
    for number in range(8):
        it.put(block(number))
    assert it.is_full
    assert it.take() == block(0)
    it.put(block(8))
    assert drained(it) == b"".join(map(block, range(1, 9)))
    assert not it.is_full
    it.put(block(9))
    assert drained(it) == block(9)
    it.close()


def test_where_there_is_no_directory_it_stays_in_memory(tmp_path: Path) -> None:
    it = Spool(Spools([str(tmp_path / "missing")]))
    for number in range(4):
        assert not it.is_full or number > 2
        it.put(block(number))
    assert it.is_full
    assert drained(it) == b"".join(map(block, range(4)))
    assert not it.is_full


# --- behind a protocol


def streaming(blocks: int, *headers: tuple[bytes, bytes], large: str = "/") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        count = blocks if scope["path"] == large else 1
        length = (b"content-length", b"%d" % (count * BLOCK))
        await send({"type": "http.response.start", "status": 200, "headers": [length, *headers]})
        for number in range(count):
            body = {"type": "http.response.body", "body": block(number), "more_body": number < count - 1}
            await send(body)
            seen.append(number)

    return app


async def given_all(blocks: int) -> None:
    while len(seen) < blocks:  # `run` limits the time
        await asyncio.sleep(0.005)


async def asks(served: Served, tmp_path: Path, path: str = "/") -> Client:
    served.state.spools = Spools([str(tmp_path)])
    client = await served.connect()
    return await client.send(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def test_the_app_does_not_wait_for_its_client(http: str, tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await given_all(100)
        assert client.protocol.idle
        assert not client.protocol.is_movable  # before its client has all of it
        assert body(await client.answer()) == b"".join(map(block, range(100)))
        await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert body(await client.answer()) == block(0)
        assert client.protocol.is_movable
        assert served.state.spools is not None
        assert served.state.spools.room == spool.ALL

    run(test, streaming(100), http)


def test_the_last_response_of_a_connection_is_sent_in_whole_before_it_closes(
    http: str, tmp_path: Path
) -> None:
    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await given_all(100)
        assert client.protocol.transport.is_closing()
        await client.send(b"GET / HTTP/1.1\r\n" * 3)  # nobody reads this any more
        assert body(await client.receive()) == b"".join(map(block, range(100)))

    run(test, streaming(100, (b"connection", b"close")), http)


def test_a_response_in_one_piece_waits_behind_what_is_spooled(http: str, tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await client.send(b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await given_all(101)
        first = body(await client.receive())
        assert first[: 100 * BLOCK] == b"".join(map(block, range(100)))
        second = first[100 * BLOCK :]
        assert second.startswith(b"HTTP/1.1 200 ")
        assert body(second) == block(0)

    with installed(Scoreboard(1).row(0)):
        run(test, streaming(100), http)


def test_where_the_spool_is_full_the_app_waits(
    http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "EACH", 1_000_000)

    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await given_all(10)
        await asyncio.sleep(0.1)
        assert len(seen) < 40
        assert body(await client.answer()) == b"".join(map(block, range(100)))

    run(test, streaming(100), http)


def test_a_client_that_leaves_leaves_nothing_behind(http: str, tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await given_all(100)
        client.end.close()
        while served.state.connections:
            await asyncio.sleep(0.005)
        assert served.state.spools is not None
        assert served.state.spools.room == spool.ALL

    run(test, streaming(100), http)
    before = descriptors()  # with what the loops keep
    run(test, streaming(100), http)
    assert descriptors() == before


def test_a_client_that_takes_nothing_is_dropped(http: str, tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        await asks(served, tmp_path)
        await given_all(100)
        for now in range(1000, 1070):
            served.sweep(now)
        while served.state.connections:
            await asyncio.sleep(0.005)

    run(test, streaming(100), http, Limits(send_timeout=60))


def test_the_time_of_a_kept_alive_connection_begins_when_its_client_has_all(
    http: str, tmp_path: Path
) -> None:
    async def test(served: Served) -> None:
        served.config.timeout_keep_alive = 0  # with 0 it would be closed in the loop's next turn
        client = await asks(served, tmp_path)
        await given_all(100)
        await asyncio.sleep(0.05)
        assert client.protocol in served.state.connections
        assert body(await client.receive()) == b"".join(map(block, range(100)))

    run(test, streaming(100), http)


def test_a_file_that_cannot_be_read_ends_the_connection(
    http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    async def test(served: Served) -> None:
        client = await asks(served, tmp_path)
        await given_all(100)
        monkeypatch.setattr(os, "pread", pread)
        assert len(await client.receive()) < 100 * BLOCK
        monkeypatch.undo()

    run(test, streaming(100), http)
