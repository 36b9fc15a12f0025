"""What a thread gives away of a worker whose event loop stands still: by real loops, in real sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.connections.reading import reading_of
from multicore_server.connections.rescue import BATCH, Rescue
from multicore_server.ipc.scoreboard import Item
from multicore_server.worker.standstill import is_in_app
from tests.unit.acceptor.workplace import Workplace
from tests.unit.fake_transport import GET

LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class Blocked(Workplace):
    """A worker with idle connections, whose loop a function keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.reading: Any = reading_of(self.loop)
        assert self.reading is not None
        dispatcher, soon = Dispatcher(self.handover, 0, self.row), self.loop.call_soon_threadsafe
        self.rescue = Rescue(self.state, dispatcher, self.reading, self.is_in_app, soon)
        self.found: list[Handed] = []

    def is_in_app(self) -> bool:
        return is_in_app(sys._current_frames().get(self.thread))

    async def idle(self, number: int) -> list[socket.socket]:
        """So many connections that have had a response."""
        await self.acceptor.open([self.listener])
        clients = [self.connect() for _ in range(number)]
        for client in clients:
            assert await self.answered(client)
        await self.settle()
        self.wake_sibling()
        return clients

    async def settle(self) -> None:
        """Two beats, between which the loop waits for what comes."""
        for _ in range(2):
            await asyncio.sleep(0.001)
            self.state.beats += 1
        await asyncio.sleep(0.001)

    def while_blocked(self, function: Callable[[], object]) -> None:
        """The loop's thread is in the app's code meanwhile."""
        failed: list[BaseException] = []

        def other() -> None:
            try:
                while not self.is_in_app():
                    time.sleep(0.001)
                function()
            except BaseException as exc:  # noqa: BLE001 - raised below
                failed.append(exc)

        thread = threading.Thread(target=other)
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
        if failed:
            raise failed[0]

    def take(self) -> list[Handed]:
        """What has come to the sibling."""
        while taken := self.handover.inboxes.receive(1):
            self.found += taken
        return self.found

    async def end(self) -> None:
        for handed in self.take():
            handed.connection.close()
        await super().end()


def play(run: Any, scenario: Callable[[Blocked], Any]) -> None:
    async def main() -> None:
        place = Blocked()
        try:
            await scenario(place)
        finally:
            for client in place.clients:
                client.close()
            await place.end()

    run(main())


def connections_of(place: Blocked) -> dict[int, Any]:
    """By the client's port."""
    found: set[Any] = set(place.state.connections)
    return {it.client[1]: it for it in found}


def number_of_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@LOOPS
def test_idle_connections_go_to_a_sibling_and_are_never_read_here(run: Any) -> None:
    async def scenario(place: Blocked) -> None:
        clients = await place.idle(20)
        before = number_of_descriptors()

        def other() -> None:
            assert place.rescue.run() == 20
            for client in clients:
                client.sendall(GET)  # before the loop runs again

        place.while_blocked(other)
        assert place.open == 0
        await place.until(lambda: place.row[Item.MIGRATED] == 20)
        await asyncio.sleep(0.05)
        await place.until(lambda: number_of_descriptors() == before - 20)
        assert place.connections.app.waiting == []
        assert {it.kind for it in place.take()} == {Kind.KEPT_ALIVE}
        for handed in place.found:
            handed.connection.settimeout(1)
            assert handed.connection.recv(4096) == GET
            handed.connection.sendall(b"there")
        for client in clients:
            assert await asyncio.wait_for(place.loop.sock_recv(client, 99), 1) == b"there"
        assert (place.row[Item.CONNECTIONS], *place.counts) == (0, 0, 0)

    play(run, scenario)


@LOOPS
def test_connections_of_which_nothing_was_read_go_too(run: Any) -> None:
    async def scenario(place: Blocked) -> None:
        await place.acceptor.open([place.listener])
        place.connect()
        await place.until(lambda: place.counts == (1, 1))
        for _ in range(3):  # uvloop tells epoll of a connection when it waits the next time
            await asyncio.sleep(0.001)
        place.wake_sibling()
        place.while_blocked(place.rescue.run)
        await place.until(lambda: place.counts == (0, 0))
        (handed,) = place.take()
        assert handed.kind is Kind.NEW

    play(run, scenario)


@LOOPS
def test_what_is_in_hand_stays(run: Any) -> None:
    async def scenario(place: Blocked) -> None:
        begun, awaited, piped, paused, announced = await place.idle(5)
        connections = connections_of(place)

        def of(client: socket.socket) -> Any:
            return connections[client.getsockname()[1]]

        begun.sendall(GET[:-4])
        awaited.sendall(GET)
        piped.sendall(GET + GET)
        await place.until(lambda: len(place.connections.app.waiting) == 2 and of(begun).phase == 2)
        of(paused).transport.pause_reading()
        of(announced).stays = True
        place.while_blocked(place.rescue.run)
        assert place.take() == []
        assert place.open == 5
        assert not any(it.claimed for it in connections.values())
        of(paused).transport.resume_reading()
        while place.connections.app.waiting:
            place.connections.app.answer()
            await asyncio.sleep(0.01)
        assert await place.answered(paused)

    play(run, scenario)


@LOOPS
def test_what_the_loop_is_about_to_read_stays(run: Any) -> None:
    """uvloop calls what waits for a descriptor while it goes through what epoll has reported, and then reads
    on, whatever epoll knows by then."""

    async def scenario(place: Blocked) -> None:
        (client,) = await place.idle(1)
        reader, writer = socket.socketpair()
        gone: list[int] = []

        def is_called_by_the_loop() -> None:
            place.loop.remove_reader(reader)
            thread = threading.Thread(target=lambda: gone.append(place.rescue.run()))
            thread.start()
            while thread.is_alive():
                time.sleep(0.001)

        place.loop.add_reader(reader, is_called_by_the_loop)
        with reader, writer:
            await asyncio.sleep(0.01)
            writer.send(b"x")  # both are reported together, in this order
            client.sendall(GET)
            await place.until(lambda: gone)
        assert gone == [0]
        await place.until(lambda: place.connections.app.waiting)
        place.connections.app.answer()
        assert await place.answered(client)

    play(run, scenario)


@LOOPS
@pytest.mark.parametrize("why", ["nobody", "blocked too", "full", "returned", "returned later"])
def test_what_cannot_go_is_served_here_as_before(run: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(place: Blocked) -> None:
        clients = await place.idle(BATCH + 3)
        before = number_of_descriptors()
        looks = iter([True, False, False] if why == "returned later" else [False] * 9)
        if why == "nobody":
            place.serving(0)
        elif why == "blocked too":
            place.sibling[Item.BEAT_DUE] = time.monotonic() - 60
        elif why == "full":
            refuse = OSError(errno.EAGAIN, "full")
            monkeypatch.setattr(place.handover.inboxes, "send", lambda *_: (_ for _ in ()).throw(refuse))
        else:
            monkeypatch.setattr(place.rescue, "_is_in_app", lambda: next(looks))

        def other() -> None:
            assert place.rescue.run() == 0
            for client in clients:
                client.sendall(GET)

        place.while_blocked(other)
        assert place.take() == []
        await place.until(lambda: len(place.connections.app.waiting) == len(clients))
        await place.until(lambda: number_of_descriptors() <= before)
        while place.connections.app.waiting:
            place.connections.app.answer()
        for client in clients:
            got = b""
            while not got.endswith(b"ok"):
                got += await asyncio.wait_for(place.loop.sock_recv(client, 999), 1)
        assert place.open == len(clients)

    play(run, scenario)


@LOOPS
def test_without_descriptors_they_stay(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(place: Blocked) -> None:
        (client,) = await place.idle(1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many")))
            place.while_blocked(place.rescue.run)
        assert place.take() == []
        place.serving(0)
        assert await place.answered(client)

    play(run, scenario)


@LOOPS
def test_a_client_that_leaves_meanwhile(run: Any) -> None:
    async def scenario(place: Blocked) -> None:
        clients = await place.idle(4)

        def other() -> None:
            clients[0].close()
            place.rescue.run()
            clients[1].close()

        place.while_blocked(other)
        await place.until(lambda: place.open == 0)
        await asyncio.sleep(0.02)
        assert len(place.take()) == 4
        assert place.counts == (0, 0)

    play(run, scenario)


@LOOPS
def test_what_has_got_the_number_of_a_connection_meanwhile_is_read_on(run: Any) -> None:
    """The loop goes on, closes a connection, and opens another one, while the thread is at work."""

    async def scenario(place: Blocked) -> None:
        (client, other) = await place.idle(2)
        there = connections_of(place)
        mine, theirs = (there[it.getsockname()[1]] for it in (client, other))
        own = os.dup(mine.transport.get_extra_info("socket").fileno())
        replaced: Any = SimpleNamespace(transport=Renumbered(mine.transport, theirs.transport))
        assert not place.reading.stop(replaced, own)
        os.close(own)
        assert await place.answered(other)
        assert await place.answered(client)

    play(run, scenario)


class Renumbered:
    """A transport whose number is another one's."""

    def __init__(self, transport: Any, other: Any) -> None:
        self._transport = transport
        self.get_extra_info = other.get_extra_info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def test_one_that_asyncio_reads_again_between_two_steps_of_the_thread_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Handle:
        """Of which the thread has just found that it is in force."""

        def __init__(self, transport: Any) -> None:
            self._transport = transport

        def cancelled(self) -> bool:
            self._transport.pause_reading()  # as the loop does for a pipeline
            self._transport.resume_reading()
            return False

    async def scenario(place: Blocked) -> None:
        (client,) = await place.idle(1)
        real = place.reading._handle_of
        seen: list[Any] = []

        def handle_of(transport: Any) -> Any:
            seen.append(transport)
            return Handle(transport) if len(seen) == 1 else real(transport)

        monkeypatch.setattr(place.reading, "_handle_of", handle_of)
        place.while_blocked(place.rescue.run)
        assert len(seen) == 2
        assert place.take() == []
        assert await place.answered(client)

    play(asyncio.run, scenario)


@LOOPS
def test_one_that_the_loop_has_closed_while_the_thread_had_it_is_forgotten(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(place: Blocked) -> None:
        await place.idle(1)
        (connection,) = connections_of(place).values()

        def stop(closed: Any, own: int) -> bool:
            closed.let_go()  # as the loop would
            return False

        monkeypatch.setattr(place.reading, "stop", stop)
        place.while_blocked(place.rescue.run)
        assert place.state.connections == set()
        assert not connection.claimed

    play(run, scenario)


@LOOPS
def test_each_byte_is_read_by_one_worker_alone_however_the_loop_comes_and_goes(run: Any) -> None:
    """The app has the thread for random times, the other thread gives away at random times, and clients send
    at random times: each request is found here or there, once."""
    clients_each, rounds = 12, 60
    dice = random.Random(7)

    async def scenario(place: Blocked) -> None:
        clients = await place.idle(clients_each)
        sent = 0
        stop = threading.Event()

        def give() -> None:
            while not stop.is_set():
                if place.is_in_app():
                    place.rescue.run()
                time.sleep(0.0005)

        giver = threading.Thread(target=give)
        giver.start()
        try:
            for _ in range(rounds):
                while len(clients) < clients_each:  # what has gone is replaced
                    client = place.connect()
                    place.row[Item.ACCEPTING] = 1
                    clients.append(client)
                for client in dice.sample(clients, 3):
                    requests = dice.choice([1, 1, 2])  # two are a pipeline: the second one is not read on
                    client.sendall(GET * requests)
                    sent += requests
                block(dice.random() * 0.004)
                await asyncio.sleep(dice.random() * 0.002)
                place.state.beats += dice.choice([0, 0, 1])
                here = answer_all(place)
                sent -= here
                sent -= read_all(place, clients)
                place.sibling[Item.BEAT_DUE] = time.monotonic()
        finally:
            stop.set()
            giver.join()
        deadline = time.monotonic() + 5
        while sent and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
            sent -= answer_all(place)
            sent -= read_all(place, clients)
        assert sent == 0
        assert place.row[Item.MIGRATED] > 20

    play(run, scenario)


def block(seconds: float) -> None:
    """As an app does, in calls that let other threads run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.0002)


def answer_all(place: Blocked) -> int:
    found = 0
    while place.connections.app.waiting:
        place.connections.app.answer()
        found += 1
    return found


def read_all(place: Blocked, clients: list[socket.socket]) -> int:
    """Requests that the sibling has got. It keeps its connections: what was sent may still be on its way."""
    found = 0
    for handed in place.take():
        handed.connection.setblocking(False)
        for data in received(handed.connection):
            assert len(data) % len(GET) == 0
            assert data.startswith(GET)
            found += len(data) // len(GET)
    ports = {it.connection.getpeername()[1] for it in place.found}
    clients[:] = [client for client in clients if client.getsockname()[1] not in ports]
    return found


def received(connection: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        if not data:
            return
        yield data


def test_a_connection_is_left_alone_until_libuv_has_told_epoll_of_it() -> None:
    """Reading that was paused and resumed, in the turn of the loop in which the app blocks it: libuv would
    read on, as it tells epoll before it waits."""

    async def scenario(place: Blocked) -> None:
        (client,) = await place.idle(1)
        connection: Any = next(iter(place.state.connections))
        connection.flow.pause_reading()
        connection.on_response_complete()
        place.while_blocked(place.rescue.run)
        assert place.take() == []
        await place.settle()
        place.while_blocked(place.rescue.run)
        (handed,) = place.take()
        client.sendall(GET)
        await asyncio.sleep(0.02)
        assert handed.connection.recv(4096) == GET

    play(uvloop.run, scenario)
