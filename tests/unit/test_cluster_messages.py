"""Messages of an app: what may be sent, who is told of them, in a worker and where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicore_server import cluster
from multicore_server.cluster import Message, NotDelivered
from multicore_server.cluster.calls import MOST, Apart
from multicore_server.cluster.messaging import (
    MAX_FDS,
    MAX_MESSAGE,
    MOST_WAITING,
    encoded,
)
from multicore_server.cluster.place import here
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.mailboxes import Kind, Mailboxes, Packet
from multicore_server.ipc.messages import AppMessage
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.worker.mailbox import AT_ONCE, Mailbox
from tests.support import outside
from tests.support.coroutines import run, until

SLOTS = 3


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module has no handlers before a test, and none of its afterwards."""
    outside.put_back(monkeypatch)


@pytest.fixture
def seen() -> list[tuple[Any, Any]]:
    """The values and senders of the messages that come."""
    found: list[tuple[Any, Any]] = []

    @cluster.on_message
    def note(message: Message, sender: Any) -> None:
        found.append((message.value, sender))

    return found


class Pipe:
    """Its writing end is for messages; whether all copies of it are closed shows at the other end."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    @property
    def has_ended(self) -> bool:
        try:
            return os.read(self.reader, 100) == b""
        except BlockingIOError:
            return False

    def close_writer(self) -> None:
        os.close(self.writer)

    def close(self) -> None:
        for end in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


# --- a message


def test_a_message_says_what_it_is() -> None:
    assert repr(Message({"a": 1}, "arbiter")) == "Message({'a': 1}, sender='arbiter', fds=[])"


def test_descriptors_are_closed_with_their_message(pipe: Pipe) -> None:
    message = Message(1, 0, [pipe.writer])
    assert not pipe.has_ended
    del message
    assert pipe.has_ended


def test_one_that_is_taken_out_is_its_takers(pipe: Pipe) -> None:
    message = Message(1, 0, [os.dup(pipe.writer), pipe.writer])
    taken = message.fds.pop()
    del message
    os.write(taken, b"still open")
    assert os.read(pipe.reader, 100) == b"still open"


def test_a_list_that_is_replaced_is_closed_all_the_same(pipe: Pipe) -> None:
    message = Message(1, 0, [pipe.writer])
    message.fds = []
    del message
    assert pipe.has_ended


# --- what may be sent


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_VALUES = {
    "object": (object(), TypeError),
    "set": ({1}, TypeError),
    "bytes": (b"x", TypeError),
    "key": ({(1, 2): 3}, TypeError),
    "inside": ({"a": [1, object()]}, TypeError),
    "nan": (float("nan"), ValueError),
    "infinite": ([float("inf")], ValueError),
    "surrogate": ("\ud800", ValueError),
    "nested": (nested(100_000), ValueError),
    "large": ("x" * (MAX_MESSAGE - 1), ValueError),
    "large in bytes": ("é" * (MAX_MESSAGE // 2), ValueError),
    "digits": (10**5000, ValueError),
}


def a_ring() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


bad_value = pytest.mark.parametrize(("value", "error"), BAD_VALUES.values(), ids=BAD_VALUES)


@bad_value
@pytest.mark.parametrize("send", [lambda value: cluster.send_sync(0, value), cluster.broadcast_sync])
def test_what_is_no_json_is_a_mistake(value: Any, error: type[Exception], send: Any, seen: Any) -> None:
    with pytest.raises(error):
        send(value)
    assert seen == []


def test_what_contains_itself_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Circular"):
        cluster.send_sync(0, a_ring())


def test_as_large_as_is_promised_and_no_byte_more(seen: list[Any]) -> None:
    for text in ("x" * (MAX_MESSAGE - 2), "é" * (MAX_MESSAGE // 2 - 1)):
        assert len(encoded(text)) == MAX_MESSAGE == 65536
        cluster.send_sync(0, text)
        assert seen[-1] == (text, 0)
        with pytest.raises(ValueError, match="65537 bytes; the limit is 65536"):
            cluster.send_sync(0, text + "x")


TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON)
def test_what_json_can_say_arrives_as_it_is(value: Any) -> None:
    assert json.loads(encoded(value)) == value


@pytest.mark.parametrize("instance", ["0", None, True, False, 1.0, b"arbiter", "Arbiter", [0]])
def test_what_is_no_instance_is_a_mistake(instance: Any, seen: list[Any]) -> None:
    with pytest.raises(TypeError, match="is neither an instance number nor 'arbiter'"):
        cluster.send_sync(instance, 1)
    assert seen == []


class HasNone:
    pass


class HasNoNumber:
    def fileno(self) -> str:
        return "3"


@pytest.mark.parametrize("fd", ["3", None, True, 1.0, HasNone(), HasNoNumber()])
def test_what_has_no_descriptor_is_a_mistake(fd: Any, seen: list[Any]) -> None:
    with pytest.raises(TypeError, match="is not a file descriptor and has none"):
        cluster.send_sync(0, 1, fds=[fd])
    assert seen == []


@pytest.mark.parametrize("fd", [-1, 2**20, 2**31 - 1, 2**40])
def test_what_is_no_open_descriptor_is_a_mistake(fd: int, seen: list[Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are the system's
        cluster.send_sync(0, 1, fds=[fd])
    assert seen == []


def test_a_file_in_memory_is_a_mistake() -> None:
    with pytest.raises((TypeError, ValueError)):
        cluster.send_sync(0, 1, fds=[io.BytesIO()])


def test_closed_sockets_and_files_are_a_mistake(seen: list[Any]) -> None:
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="is closed"):
        cluster.send_sync(0, 1, fds=[closed])
    with open(os.devnull) as file:  # noqa: PTH123 - what has a descriptor
        pass
    with pytest.raises(ValueError, match="closed file"):
        cluster.send_sync(0, 1, fds=[file])
    assert seen == []


def test_seventeen_descriptors_are_too_many(pipe: Pipe, seen: list[Any]) -> None:
    with pytest.raises(ValueError, match="17 descriptors; the limit is 16"):
        cluster.send_sync(0, 1, fds=[pipe.writer] * (MAX_FDS + 1))
    assert seen == []


def test_descriptors_that_are_no_list_are_a_mistake() -> None:
    with pytest.raises(TypeError):
        cluster.send_sync(0, 1, fds=3)  # type: ignore[arg-type]


# --- outside of a worker


def test_a_process_alone_hears_its_own_messages(seen: list[Any]) -> None:
    async def main() -> None:
        for number in range(100):
            await cluster.send(0, number)
        assert await cluster.broadcast("to the others") == 0
        assert await cluster.broadcast("to all", include_self=True) == 1
        await until(lambda: len(seen) == 101)
        assert seen == [(number, 0) for number in range(100)] + [("to all", 0)]

    run(main)


def test_there_it_is_later_as_in_a_worker(seen: list[Any]) -> None:
    async def main() -> None:
        await cluster.send(0, 1)
        assert seen == []
        await until(lambda: seen)

    run(main)


@pytest.mark.parametrize("instance", [1, 7, -1])
def test_it_is_the_only_instance(instance: int) -> None:
    with pytest.raises(NotDelivered, match=f"no instance {instance}"):
        cluster.send_sync(instance, 1)


def test_it_has_no_arbiter() -> None:
    with pytest.raises(NotDelivered, match="no arbiter"):
        cluster.send_sync("arbiter", 1)


def test_without_a_loop_a_handler_is_called_at_once(seen: list[Any]) -> None:
    cluster.send_sync(0, {"a": 1})
    assert cluster.broadcast_sync(2, include_self=True) == 1
    assert seen == [({"a": 1}, 0), (2, 0)]


def test_without_a_loop_a_coroutine_function_is_waited_for() -> None:
    seen: list[Any] = []

    @cluster.on_message
    async def handler(message: Message, sender: Any) -> None:
        await asyncio.sleep(0.01)
        seen.append(message.value)

    cluster.send_sync(0, 1)
    cluster.send_sync(0, 2)
    assert seen == [1, 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_without_a_loop_what_a_handler_sends_arrives_too(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def sync_handler(message: Message, sender: Any) -> None:
        seen.append(message.value)
        if message.value < 20:
            cluster.send_sync(0, message.value + 1)

    async def async_handler(message: Message, sender: Any) -> None:
        await asyncio.sleep(0)
        sync_handler(message, sender)

    cluster.on_message(async_handler if is_async else sync_handler)
    cluster.send_sync(0, 1)
    assert seen == list(range(1, 21))
    assert caplog.messages == []


def test_threads_beside_a_loop_send_into_it() -> None:
    seen: list[tuple[Any, bool]] = []

    @cluster.on_message
    def handler(message: Message, sender: Any) -> None:
        seen.append((message.value, threading.current_thread() is threading.main_thread()))

    async def main() -> None:
        await cluster.send(0, "first")
        await asyncio.to_thread(cluster.send_sync, 0, "from a thread")
        await until(lambda: len(seen) == 2)
        assert seen == [("first", True), ("from a thread", True)]

    run(main)


def test_one_loop_after_the_other(seen: list[Any]) -> None:
    async def main() -> None:
        await cluster.send(0, 1)
        before = len(seen)
        await until(lambda: len(seen) > before)

    run(main)
    cluster.send_sync(0, 2)
    run(main)
    assert [value for value, _ in seen] == [1, 2, 1]


def test_alone_descriptors_are_duplicates_as_elsewhere(pipe: Pipe) -> None:
    kept: list[int] = []

    @cluster.on_message
    def handler(message: Message, sender: Any) -> None:
        assert message.fds != [pipe.writer]
        kept.append(message.fds.pop())

    cluster.send_sync(0, 1, fds=[pipe.writer, pipe.writer])
    pipe.close_writer()
    assert not os.get_inheritable(kept[0])
    os.write(kept[0], b"x")
    os.close(kept.pop())
    assert os.read(pipe.reader, 10) == b"x"
    assert pipe.has_ended


def test_alone_descriptors_that_nobody_takes_are_closed(pipe: Pipe) -> None:
    cluster.send_sync(0, 1, fds=[pipe.writer])
    pipe.close_writer()
    assert pipe.has_ended


def test_a_handler_that_fails_is_named_and_the_others_are_called(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    @cluster.on_message
    def fails(message: Message, sender: Any) -> None:
        raise ValueError

    @cluster.on_message
    async def fails_later(message: Message, sender: Any) -> None:
        raise KeyError

    @cluster.on_message
    def plain(message: Message, sender: Any) -> None:
        called.append("plain")

    cluster.send_sync(0, 1)
    assert called == ["plain"]
    said = [message.rpartition(".")[2] for message in caplog.messages]
    assert sorted(said) == ["fails failed", "fails_later failed"]


# --- streams


def test_a_stream_has_what_comes_while_its_block_is_open() -> None:
    async def main() -> None:
        await cluster.send(0, "before")
        await asyncio.sleep(0)
        async with cluster.messages() as stream:
            for number in range(100):
                await cluster.send(0, number)
            found = [await anext(stream) for _ in range(100)]
        assert [message.value for message in found] == list(range(100))
        assert found[0].sender == 0
        await cluster.send(0, "after")
        await asyncio.sleep(0.01)
        assert not stream._messages

    run(main)


def test_a_stream_that_is_waited_for_hears_of_the_next_message() -> None:
    async def main() -> None:
        async with cluster.messages() as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            await cluster.send(0, 1)
            assert (await waiting).value == 1

    run(main)


def test_several_streams_and_handlers_hear_of_each_message(seen: list[Any]) -> None:
    async def main() -> None:
        async with cluster.messages() as one, cluster.messages() as other:
            await cluster.send(0, 1)
            assert (await anext(one)).value == (await anext(other)).value == 1
        await until(lambda: seen == [(1, 0)])

    run(main)


def test_a_stream_ends_when_the_worker_has_drained_and_what_came_is_read_before() -> None:
    async def main() -> None:
        async with cluster.messages() as stream:
            await cluster.send(0, 1)
            await cluster.send(0, 2)
            await asyncio.sleep(0.01)
            here().receivers.end()
            assert [message.value async for message in stream] == [1, 2]
            assert [message.value async for message in stream] == []

    run(main)


def test_a_stream_that_is_waited_for_ends_too() -> None:
    async def main() -> None:
        async with cluster.messages() as stream:

            async def read() -> list[Any]:
                return [message.value async for message in stream]

            reading = asyncio.create_task(read())
            await asyncio.sleep(0.01)
            here().receivers.end()
            assert await reading == []

    run(main)


def test_a_stream_that_is_opened_after_the_end_ends_at_once() -> None:
    async def main() -> None:
        here().receivers.end()
        async with cluster.messages() as stream:
            assert [message async for message in stream] == []

    run(main)


def test_a_thousand_messages_wait_at_most(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[int] = []

    async def main() -> None:
        here().receivers.on_lost = lambda: lost.append(1)
        async with cluster.messages() as stream:
            for number in range(MOST_WAITING + 5):
                await cluster.send(0, number)
            await until(lambda: len(lost) == 5)
            found = [await anext(stream) for _ in range(MOST_WAITING)]
            assert [message.value for message in found] == list(range(1000))
            await cluster.send(0, "there is room again")
            assert (await anext(stream)).value == "there is room again"

    run(main)
    assert caplog.messages == ["nobody reads a message stream: 1000 messages wait, further ones are lost"]


def test_a_stream_that_is_left_closes_the_descriptors_that_wait(pipe: Pipe) -> None:
    async def main() -> None:
        async with cluster.messages():
            await cluster.send(0, 1, fds=[pipe.writer])
            pipe.close_writer()
            await asyncio.sleep(0.01)
            assert not pipe.has_ended
        assert pipe.has_ended

    run(main)


def test_a_stream_in_another_threads_loop_hears_and_ends() -> None:
    found: list[int] = []
    opened = threading.Event()

    async def read() -> None:
        async with cluster.messages() as stream:
            opened.set()
            async for message in stream:
                found.append(message.value)  # noqa: PERF401 - it is looked at meanwhile

    async def main() -> None:
        thread = threading.Thread(target=lambda: asyncio.run(read()))
        thread.start()
        await asyncio.to_thread(opened.wait, 10)
        for number in range(2000):
            await cluster.send(0, number)
            if not number % 100:
                await until(lambda number=number: len(found) == number + 1)  # type: ignore[misc]
        await until(lambda: len(found) == 2000)
        here().receivers.end()
        await asyncio.to_thread(thread.join)

    run(main)
    assert found == list(range(2000))


def test_a_stream_whose_loop_has_ended_costs_nothing() -> None:
    async def abandon() -> None:
        await cluster.messages().__aenter__()

    asyncio.run(abandon())

    async def main() -> None:
        await cluster.send(0, 1)
        await asyncio.sleep(0.01)
        here().receivers.end()

    run(main)


# --- in a worker: its mailbox


class Office:
    """The workers of one server in this process: what one sends lies in the other's mailbox."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Mailboxes, "keep", lambda boxes, number: None)
        self.boxes = Mailboxes(SLOTS * ROWS_PER_SLOT)
        self.scoreboard = Scoreboard(SLOTS)
        self.channel = WorkerChannel()
        self.made: list[Mailbox] = []

    def worker(self, row: int) -> Mailbox:
        self.scoreboard.assign(row)
        context: Any = SimpleNamespace(
            cluster=SimpleNamespace(mailboxes=self.boxes),
            handover=SimpleNamespace(scoreboard=self.scoreboard),
            number=row,
            instance=row // ROWS_PER_SLOT,
            row=self.scoreboard.row(row),
            channel=self.channel,
        )
        self.made.append(Mailbox(context, f"instance={row // ROWS_PER_SLOT}"))
        return self.made[-1]

    def serving(self, *rows: int) -> None:
        for row in rows:
            self.scoreboard.row(row)[Item.LISTENS] = 1
        self.scoreboard.publish(frozenset(rows))

    def raw(self, row: int, data: bytes, *fds: int) -> None:
        socket.send_fds(self.boxes._pairs[row][1], [data], fds)

    def say(self, row: int, value: Any, *fds: int, sender: int = 0) -> None:
        self.boxes.send(row, Packet(Kind.MESSAGE, sender, 0, json.dumps(value).encode(), fds))

    def found(self, row: int) -> list[Any]:
        values = []
        while (packet := self.boxes.receive(row)) is not None:
            values.append(json.loads(packet.body))
        return values

    def count(self, row: int, item: Item) -> float:
        return self.scoreboard.row(row)[item]

    def close(self) -> None:
        self.boxes.close()
        self.channel.close()


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office(monkeypatch)
    yield office
    office.close()


def without_end(send: Callable[[], None]) -> None:
    for _ in range(100_000):
        send()


@contextlib.asynccontextmanager
async def open_worker(office: Office, row: int = 0, apart: Apart | None = None) -> Any:
    mailbox = office.worker(row)
    mailbox.open(asyncio.get_running_loop(), apart)
    office.serving(row)
    here().post = mailbox
    try:
        yield mailbox
    finally:
        await mailbox.end(0)


def test_a_message_goes_to_the_process_that_serves(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 5)  # the second row of instance 1
    sender.send(1, b"1", [])
    assert office.found(5) == [1]
    assert office.count(0, Item.MESSAGES_SENT) == 1
    assert office.count(0, Item.MESSAGE_BYTES) == 1


def test_where_none_serves_one_that_still_listens_gets_it(office: Office) -> None:
    sender = office.worker(0)
    office.scoreboard.assign(4)
    office.scoreboard.row(4)[Item.LISTENS] = 1
    sender.send(1, b"1", [])
    assert office.found(4) == [1]


@pytest.mark.parametrize("instance", [1, 2, 7, -1, 2**70])
def test_an_instance_that_does_not_run_gets_nothing(office: Office, instance: int) -> None:
    sender = office.worker(0)
    office.serving(0)
    with pytest.raises(NotDelivered, match=f"instance {instance} is not running"):
        sender.send(instance, b"1", [])
    assert office.count(0, Item.MESSAGES_LOST) == 1
    assert office.count(0, Item.MESSAGES_SENT) == 0


def test_one_that_serves_but_does_not_listen_yet_gets_nothing(office: Office) -> None:
    sender = office.worker(0)
    office.worker(4)
    office.scoreboard.publish(frozenset({4}))
    with pytest.raises(NotDelivered):
        sender.send(1, b"1", [])


def test_a_broadcast_is_for_all_that_listen(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 4, 8)
    office.scoreboard.assign(5)
    office.scoreboard.row(5)[Item.LISTENS] = 1  # it drains
    assert sender.broadcast(b"1", [], include_self=False) == 3
    assert sender.broadcast(b"2", [], include_self=True) == 4
    assert [office.found(row) for row in (0, 4, 5, 8)] == [[2], [1, 2], [1, 2], [1, 2]]


def test_a_broadcast_that_one_cannot_take_is_counted(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 4, 8)
    with pytest.raises(BlockingIOError):
        without_end(lambda: office.say(4, {}))
    assert sender.broadcast(b"1", [], include_self=False) == 1
    assert office.found(8) == [1]
    assert office.count(0, Item.MESSAGES_LOST) == 1


def test_a_full_mailbox_is_said(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 4)
    with pytest.raises(NotDelivered, match="instance 1 has too many messages to read"):
        without_end(lambda: sender.send(1, b"{}", []))
    assert office.count(0, Item.MESSAGES_LOST) == 1
    assert office.count(0, Item.MESSAGES_SENT) == len(office.found(4))


def test_a_descriptor_that_is_not_open_is_said_and_nothing_is_sent(office: Office, pipe: Pipe) -> None:
    sender = office.worker(0)
    office.serving(0, 4, 8)
    pipe.close_writer()
    with pytest.raises(ValueError, match="is not open"):
        sender.send(1, b"1", [pipe.writer])
    with pytest.raises(ValueError, match="is not open"):
        sender.broadcast(b"1", [0, pipe.writer], include_self=True)
    assert [office.found(row) for row in (0, 4, 8)] == [[], [], []]


def test_a_number_that_no_descriptor_can_have_is_said(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 4)
    here().post = sender
    with pytest.raises(ValueError):  # noqa: PT011 - the words are not the point
        cluster.send_sync(1, 1, fds=[2**40])


def test_the_arbiter_gets_what_is_for_it_and_no_descriptors(office: Office) -> None:
    sender = office.worker(0)
    sender.send("arbiter", b'{"a":1}', [])
    assert list(office.channel.received()) == [AppMessage({"a": 1})]
    with pytest.raises(ValueError, match="takes no descriptors"):
        sender.send("arbiter", b"1", [0])


def test_the_largest_message_reaches_the_arbiter(office: Office) -> None:
    text = "x" * (MAX_MESSAGE - 2)
    office.worker(0).send("arbiter", encoded(text), [])
    assert list(office.channel.received()) == [AppMessage(text)]


def test_an_arbiter_that_does_not_read_is_said(office: Office) -> None:
    sender = office.worker(0)
    with pytest.raises(NotDelivered, match="the arbiter has too many messages to read"):
        without_end(lambda: sender.send("arbiter", encoded("x" * 1000), []))
    assert office.count(0, Item.MESSAGES_LOST) == 1


def test_a_process_that_a_worker_has_forked_sends_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = office.worker(0)
    office.serving(0, 4)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for send in (
        lambda: sender.send(1, b"1", []),
        lambda: sender.broadcast(b"1", [], include_self=True),
        lambda: sender.send("arbiter", b"1", []),
    ):
        with pytest.raises(NotDelivered, match="forked by a worker"):
            send()
    assert office.found(4) == []


def test_a_server_that_was_short_of_descriptors_says_so(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    for end in office.boxes._pairs.pop(4):
        end.close()
    sender = office.worker(0)
    office.serving(0, 4, 8)
    with pytest.raises(NotDelivered, match="instance 1 cannot be reached: there is no mailbox"):
        sender.send(1, b"1", [])
    assert sender.broadcast(b"1", [], include_self=False) == 1

    async def main() -> None:
        mailbox = office.worker(4)
        mailbox.open(asyncio.get_running_loop(), None)
        assert not office.count(4, Item.LISTENS)
        mailbox.send(2, b"2", [])
        mailbox.beat()
        await mailbox.end(0)

    run(main)
    assert office.found(8) == [1, 2]
    assert caplog.messages == ["instance=1 takes no messages: no descriptors were left at the start"]


def test_a_message_ends_the_rest_of_its_worker_before_it_is_handled(office: Office, seen: list[Any]) -> None:
    async def main() -> None:
        mailbox, woken = office.worker(0), list[int]()
        mailbox.open(asyncio.get_running_loop(), None, lambda: woken.append(len(seen)))
        office.say(0, "hello")
        await until(lambda: seen)
        assert woken[0] == 0
        await mailbox.end(0)

    run(main)


def test_what_comes_is_handled_in_order_and_counted(office: Office, seen: list[Any]) -> None:
    async def main() -> None:
        async with open_worker(office):
            for number in range(300):
                office.say(0, number, sender=number % 3)
            office.say(0, "from a hook", sender=-1)
            await until(lambda: len(seen) == 301)
        assert seen == [(number, number % 3) for number in range(300)] + [("from a hook", "arbiter")]

    run(main)
    assert office.count(0, Item.MESSAGES_RECEIVED) == 301


def test_a_worker_sends_to_itself(office: Office, seen: list[Any]) -> None:
    async def main() -> None:
        async with open_worker(office):
            await cluster.send(0, 1)
            assert seen == []
            assert await cluster.broadcast(2) == 0
            assert await cluster.broadcast(3, include_self=True) == 1
            await until(lambda: len(seen) == 2)
        assert seen == [(1, 0), (3, 0)]

    run(main)


def test_sending_from_several_threads_keeps_the_order_of_each_and_counts_all(office: Office) -> None:
    sender = office.worker(0)
    office.serving(0, 4)

    def send(name: str) -> None:
        for number in range(200):
            sender.send(1, encoded([name, number]), [])

    threads = [threading.Thread(target=send, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    found = office.found(4)
    assert len(found) == 800 == office.count(0, Item.MESSAGES_SENT)
    for name in "abcd":
        assert [number for by, number in found if by == name] == list(range(200))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\0" * 100,
        b"\1\0\0\0\0\0\0{",
        b"\1\0\0\0\0\0\0\xff\xff",
        b"\1\0\0\0\0\0\0" + b"[" * 60_000,
        b"\1\0\0\0\0\0\0" + b"1" * (MAX_MESSAGE + 1),
        b"\1\0\0\0\0\0\0" + b"1" * 10_000,  # more digits than Python reads
    ],
    ids=["empty", "one byte", "unknown kind", "no json", "no text", "nested", "too long", "digits"],
)
def test_what_is_garbled_costs_one_line_and_the_next_is_delivered(
    office: Office, seen: list[Any], data: bytes, pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with open_worker(office):
            office.raw(0, data)
            office.raw(0, data or b"\0", pipe.writer)
            pipe.close_writer()
            office.say(0, "next")
            await until(lambda: seen)
            assert seen == [("next", 0)]
            await until(lambda: pipe.has_ended)

    run(main)
    (record,) = caplog.records
    assert record.getMessage().startswith("instance=0 a message is dropped: ")
    assert record.levelno == logging.WARNING
    assert len(record.getMessage().splitlines()) == 1
    assert office.count(0, Item.MESSAGES_LOST) == 2


def test_a_mailbox_that_cannot_be_read_is_read_after_the_next_heartbeat(
    office: Office, seen: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def no_memory(boxes: Mailboxes, number: int) -> None:
        tried.append(number)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def main() -> None:
        async with open_worker(office) as mailbox:
            with monkeypatch.context() as patch:
                patch.setattr(Mailboxes, "receive", no_memory)
                office.say(0, "waits")
                await until(lambda: tried)
                await asyncio.sleep(0.01)
                assert len(tried) == 1  # the loop does not run hot
            assert not seen
            mailbox.beat()
            await until(lambda: seen)

    run(main)
    assert seen == [("waits", 0)]
    (line,) = caplog.messages
    assert line == "instance=0 no message can be read for now: [Errno 12] Cannot allocate memory"


def test_kinds_that_are_not_for_a_worker_are_dropped(office: Office, seen: list[Any]) -> None:
    async def main() -> None:
        async with open_worker(office):
            for kind in (Kind.ANSWER, Kind.ACTION):
                office.boxes.send(0, Packet(kind, 0, 0, b"{}"))
            office.say(0, "next")
            await until(lambda: seen)
        assert seen == [("next", 0)]

    run(main)


def test_as_deep_as_can_be_sent_arrives(office: Office, seen: list[Any]) -> None:
    """From a thread, whose stack is short, to the handlers of a loop, whose stack is longer."""
    office.serving(0)
    sender = office.worker(4)

    def send_the_deepest() -> None:
        for depth in range(sys.getrecursionlimit() + 100, 0, -1):
            try:
                body = encoded(nested(depth))
            except ValueError:
                continue
            sender.send(0, body, [])
            return

    async def main() -> None:
        async with open_worker(office):
            await asyncio.to_thread(send_the_deepest)
            await until(lambda: seen or office.count(0, Item.MESSAGES_LOST))
            assert office.count(0, Item.MESSAGES_RECEIVED) == 1

    run(main)


@pytest.mark.parametrize("handlers", [0, 1, 2])
def test_descriptors_that_no_handler_takes_are_closed(office: Office, pipe: Pipe, handlers: int) -> None:
    called: list[list[int]] = []
    for _ in range(handlers):
        cluster.on_message(lambda message, sender: called.append(list(message.fds)))

    async def main() -> None:
        async with open_worker(office):
            office.say(0, 1, pipe.writer, pipe.writer)
            pipe.close_writer()
            await until(lambda: pipe.has_ended)
            assert [len(fds) for fds in called] == [2] * handlers
            for fds in called:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(fds[0])

    run(main)


def test_descriptors_are_open_until_the_last_handler_is_done(office: Office, pipe: Pipe) -> None:
    async def main() -> None:
        may_end = asyncio.Event()

        @cluster.on_message
        async def slow(message: Message, sender: Any) -> None:
            await may_end.wait()
            os.write(message.fds[0], b"done")

        async with open_worker(office):
            office.say(0, 1, pipe.writer)
            pipe.close_writer()
            await asyncio.sleep(0.02)
            assert not pipe.has_ended
            may_end.set()
            await until(lambda: pipe.has_ended)

    with contextlib.suppress(BlockingIOError):
        run(main)


def test_descriptors_of_a_message_whose_handler_fails_are_closed(office: Office, pipe: Pipe) -> None:
    @cluster.on_message
    def fails(message: Message, sender: Any) -> None:
        raise ValueError

    async def main() -> None:
        async with open_worker(office):
            office.say(0, 1, pipe.writer)
            pipe.close_writer()
            await until(lambda: pipe.has_ended)

    logging.getLogger("gunicorn.error").disabled = True  # pytest keeps records, and these their tracebacks
    run(main)


# --- in a worker: too many


def test_while_too_many_calls_are_in_progress_the_mailbox_is_not_read(office: Office) -> None:
    begun: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        @cluster.on_message
        async def waits(message: Message, sender: Any) -> None:
            begun.append(message.value)
            await gate.wait()

        async with open_worker(office):
            for number in range(MOST + 200):
                office.say(0, number)
                if not number % 50:
                    await asyncio.sleep(0)
            await until(lambda: len(begun) == MOST)
            await asyncio.sleep(0.02)
            assert len(begun) == MOST == office.count(0, Item.MESSAGES_RECEIVED)
            gate.set()
            await until(lambda: len(begun) == MOST + 200)
        assert begun == list(range(MOST + 200))

    run(main)


def test_an_app_that_has_no_time_for_a_while_goes_on_to_read(office: Office, seen: list[Any]) -> None:
    """An inline app whose response is in progress, or one with threads whose handler is slow."""

    async def main() -> None:
        turn = asyncio.Lock()

        async def apart(call: Callable[[], None]) -> None:
            async with turn:
                call()

        async with open_worker(office, apart=apart):
            await turn.acquire()
            for number in range(MOST + 200):
                office.say(0, number)
                if not number % 50:
                    await asyncio.sleep(0)
            await until(lambda: office.count(0, Item.MESSAGES_RECEIVED) >= MOST - 1)
            await asyncio.sleep(0.02)
            assert office.count(0, Item.MESSAGES_RECEIVED) <= MOST
            assert seen == []
            turn.release()
            await until(lambda: len(seen) == MOST + 200)
        assert [value for value, _ in seen] == list(range(MOST + 200))

    run(main)


# --- in a worker: its end


def test_at_its_end_a_worker_takes_all_that_has_come(office: Office, seen: list[Any]) -> None:
    async def main() -> None:
        async with open_worker(office) as mailbox:
            for number in range(5 * AT_ONCE):
                office.say(0, number)
            await mailbox.end(10)
            assert [value for value, _ in seen] == list(range(5 * AT_ONCE))
            assert office.count(0, Item.LISTENS) == 0

    run(main)


def test_at_its_end_handlers_are_waited_for_and_streams_end(office: Office) -> None:
    done: list[Any] = []

    @cluster.on_message
    async def slow(message: Message, sender: Any) -> None:
        await asyncio.sleep(0.05)
        done.append(message.value)

    async def main() -> None:
        async with open_worker(office) as mailbox, cluster.messages() as stream:
            office.say(0, 1)
            await mailbox.end(10)
            assert done == [1]
            assert [message.value async for message in stream] == [1]

    run(main)


def test_one_that_never_ends_is_named_and_not_waited_for(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    @cluster.on_message
    async def endless(message: Message, sender: Any) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        async with open_worker(office) as mailbox:
            office.say(0, 1)
            await mailbox.end(0.05)

    run(main)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("endless has not ended; it is cancelled")


def test_after_its_end_it_may_still_send(office: Office) -> None:
    async def main() -> None:
        async with open_worker(office) as mailbox:
            office.serving(0, 4)
            await mailbox.end(0)
            mailbox.send(1, b"1", [])
            with pytest.raises(NotDelivered):
                mailbox.send(0, b"1", [])
            await mailbox.end(0)

    run(main)
    assert office.found(4) == [1]


def test_one_that_never_began_ends(office: Office) -> None:
    async def main() -> None:
        assert not await office.worker(0).end(1)

    run(main)


def test_heartbeats_name_those_that_do_not_end(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("multicore_server.cluster.calls.SLOW", 0.0)

    @cluster.on_message
    async def endless(message: Message, sender: Any) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        async with open_worker(office) as mailbox:
            office.say(0, 1)
            await until(lambda: office.count(0, Item.MESSAGES_RECEIVED))
            await asyncio.sleep(0.01)
            mailbox.beat()
            mailbox.beat()
            assert len(caplog.messages) == 1
            assert caplog.messages[0].endswith("endless has not ended after 0 s")

    run(main)


def test_seconds_in_handlers_are_counted(office: Office) -> None:
    @cluster.on_message
    async def slow(message: Message, sender: Any) -> None:
        await asyncio.sleep(0.05)

    async def main() -> None:
        async with open_worker(office) as mailbox:
            office.say(0, 1)
            await mailbox.end(10)

    run(main)
    assert 0.04 < office.count(0, Item.HANDLER_SECONDS) < 10


# --- histories: several workers, one of which is killed at times


Step = tuple[str, int, int]
STEPS = st.tuples(
    st.sampled_from(["send", "broadcast", "read", "die", "replace", "deaf"]),
    st.integers(0, 2),
    st.integers(0, 2),
)


class World:
    """The workers of one server, and what each of them was sent and has got, by its life."""

    def __init__(self) -> None:
        self.boxes = Mailboxes(SLOTS * ROWS_PER_SLOT)
        self.scoreboard = Scoreboard(SLOTS)
        self.sent: dict[tuple[int, int], list[int]] = {}
        self.got: dict[tuple[int, int], list[int]] = {}
        self.lives = dict.fromkeys(range(SLOTS), 0)
        self.alive: set[int] = set()
        self.number = 0
        self.posts: dict[int, Mailbox] = {}
        for instance in range(SLOTS):
            self.replace(instance)

    def life(self, instance: int) -> tuple[int, int]:
        return instance, self.lives[instance]

    def row(self, instance: int) -> int:
        return instance * ROWS_PER_SLOT

    def replace(self, instance: int) -> None:
        if instance in self.alive:
            return
        self.scoreboard.assign(self.row(instance))
        self.boxes.empty(self.row(instance))
        self.lives[instance] += 1
        self.alive.add(instance)
        context: Any = SimpleNamespace(
            cluster=SimpleNamespace(mailboxes=self.boxes),
            handover=SimpleNamespace(scoreboard=self.scoreboard),
            number=self.row(instance),
            instance=instance,
            row=self.scoreboard.row(self.row(instance)),
        )
        self.posts[instance] = Mailbox(context, "")
        self.scoreboard.row(self.row(instance))[Item.LISTENS] = 1
        self.publish()

    def publish(self) -> None:
        self.scoreboard.publish(frozenset(self.row(instance) for instance in self.alive))

    def die(self, instance: int) -> None:
        if instance in self.alive:
            self.alive.discard(instance)
            self.scoreboard.clear(self.row(instance))
            self.publish()

    def listens(self, instance: int) -> bool:
        return instance in self.alive and bool(self.scoreboard.row(self.row(instance))[Item.LISTENS])

    def send(self, sender: int, to: int) -> None:
        self.number += 1
        if sender not in self.alive:
            return
        try:
            self.posts[sender].send(to, encoded(self.number), [])
        except NotDelivered:
            assert not self.listens(to)
        else:
            assert self.listens(to)
            self.sent.setdefault(self.life(to), []).append(self.number)

    def broadcast(self, sender: int) -> None:
        self.number += 1
        if sender not in self.alive:
            return
        those = [to for to in range(SLOTS) if to != sender and self.listens(to)]
        assert self.posts[sender].broadcast(encoded(self.number), [], include_self=False) == len(those)
        for to in those:
            self.sent.setdefault(self.life(to), []).append(self.number)

    def read(self, instance: int) -> None:
        if instance not in self.alive:
            return
        got = self.got.setdefault(self.life(instance), [])
        while (packet := self.boxes.receive(self.row(instance))) is not None:
            got.append(json.loads(packet.body))

    def deaf(self, instance: int) -> None:
        if instance in self.alive:
            self.scoreboard.row(self.row(instance))[Item.LISTENS] = 0

    def check(self) -> None:
        """Each process has got what was sent to it and to no other, in order; one that has died has lost the
        end of it alone."""
        for instance in self.alive:
            self.read(instance)
        for life, sent in self.sent.items():
            got = self.got.get(life, [])
            lives = life[0] in self.alive and life == self.life(life[0])
            assert got == (sent if lives else sent[: len(got)])
        assert all(life in self.sent for life, got in self.got.items() if got)


@settings(deadline=None)  # what it takes is up to the machine
@given(st.lists(STEPS, max_size=60))
def test_each_process_gets_what_was_sent_to_it_once_and_in_order(history: list[Step]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mailboxes, "keep", lambda boxes, number: None)
        world = World()
        for what, one, other in history:
            if what == "send":
                world.send(one, other)
            else:
                getattr(world, what)(one)
        world.check()
        world.boxes.close()
