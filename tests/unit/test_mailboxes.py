"""Packets on their way from one process to another: in order, within limits, no descriptor leaked."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from multicore_server.ipc import mailboxes as module
from multicore_server.ipc.mailboxes import (
    ARBITER,
    MAX_BODY,
    MAX_DESCRIPTORS,
    GarbledError,
    Kind,
    Mailboxes,
    NoMailboxError,
    Packet,
)
from tests.support.descriptors import descriptors

HEAD = module._HEAD.size
Pipe = tuple[int, int]


@pytest.fixture
def boxes() -> Iterator[Mailboxes]:
    boxes = Mailboxes(2)
    yield boxes
    boxes.close()


@pytest.fixture
def pipe() -> Iterator[Callable[[], Pipe]]:
    """Make pipes; what is open of them is closed at the end."""
    made: list[int] = []

    def make() -> Pipe:
        made.extend(os.pipe())
        os.set_blocking(made[-2], False)
        return made[-2], made[-1]

    yield make
    for end in made:
        try:
            os.close(end)
        except OSError:
            continue


def message(body: bytes, *fds: int) -> Packet:
    return Packet(Kind.MESSAGE, 3, 0, body, fds)


def raw(boxes: Mailboxes, to: int, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """Write what no `Mailboxes` would."""
    socket.send_fds(boxes._pairs[to][1], [data], fds)


def bodies(boxes: Mailboxes, number: int) -> list[bytes]:
    found = []
    while (packet := boxes.receive(number)) is not None:
        found.append(packet.body)
    return found


def fill(boxes: Mailboxes, number: int, body: bytes = b"{}") -> int:
    """Send until it is full; how many there was room for."""
    for count in range(100_000):
        try:
            boxes.send(number, message(body))
        except BlockingIOError:
            return count
    raise AssertionError("it is never full")


def has_ended(reader: int) -> bool:
    """Whether nobody can write into this pipe any more."""
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False


# --- in and out


def test_a_packet_arrives_as_it_was(boxes: Mailboxes) -> None:
    sent = Packet(Kind.ANSWER, ARBITER, 2**32 - 1, b'{"a":1}', ())
    boxes.send(1, sent)
    assert boxes.receive(0) is None
    assert boxes.receive(1) == sent
    assert boxes.receive(1) is None


def test_each_process_has_its_own_and_the_monitor_too(boxes: Mailboxes) -> None:
    for number in (0, 1, boxes.monitor):
        boxes.send(number, message(b"%d" % number))
    assert [bodies(boxes, number) for number in (0, 1, boxes.monitor)] == [[b"0"], [b"1"], [b"2"]]


def test_packets_keep_their_order(boxes: Mailboxes) -> None:
    for number in range(500):
        boxes.send(0, message(b"%d" % number))
    assert bodies(boxes, 0) == [b"%d" % number for number in range(500)]


def test_senders_of_several_threads_each_keep_their_order(boxes: Mailboxes) -> None:
    def send(name: bytes) -> None:
        for number in range(2000):
            while True:
                try:
                    boxes.send(0, message(b"%s %d" % (name, number)))
                    break
                except BlockingIOError:
                    select.select([], [boxes._pairs[0][1]], [], 1)

    names = [b"a", b"b", b"c", b"d"]
    threads = [threading.Thread(target=send, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    found: dict[bytes, list[int]] = {name: [] for name in names}
    for _ in range(2000 * len(names)):
        assert select.select([boxes.reader(0)], [], [], 10)[0]
        packet = boxes.receive(0)
        assert packet is not None
        name, _, number = packet.body.partition(b" ")
        found[name].append(int(number))
    for thread in threads:
        thread.join(10)
    assert all(numbers == list(range(2000)) for numbers in found.values())


def test_it_is_readable_while_something_lies_in_it(boxes: Mailboxes) -> None:
    reader = boxes.reader(0)
    assert select.select([reader], [], [], 0)[0] == []
    boxes.send(0, message(b"1"))
    assert select.select([reader], [], [], 0)[0] == [reader]
    boxes.receive(0)
    assert select.select([reader], [], [], 0)[0] == []


def test_the_largest_body_arrives(boxes: Mailboxes) -> None:
    boxes.send(0, message(b"x" * MAX_BODY))
    assert bodies(boxes, 0) == [b"x" * MAX_BODY]


def test_a_full_mailbox_refuses_at_once_and_keeps_what_it_has(boxes: Mailboxes) -> None:
    room = fill(boxes, 0)
    assert room > 500
    boxes.send(1, message(b"beside"))
    assert len(bodies(boxes, 0)) == room
    assert bodies(boxes, 1) == [b"beside"]
    assert fill(boxes, 0) == room


def test_there_is_room_for_some_of_the_largest(boxes: Mailboxes) -> None:
    assert fill(boxes, 0, b"x" * MAX_BODY) >= 10


# --- descriptors


def test_descriptors_arrive_with_their_packet_and_are_not_inherited(
    boxes: Mailboxes, pipe: Callable[[], Pipe]
) -> None:
    reader, writer = pipe()
    boxes.send(0, message(b"1", writer))
    os.close(writer)
    packet = boxes.receive(0)
    assert packet is not None
    (received,) = packet.descriptors
    assert not os.get_inheritable(received)
    os.write(received, b"hello")
    os.close(received)
    assert os.read(reader, 10) == b"hello"
    assert has_ended(reader)


def test_as_many_descriptors_as_are_promised(boxes: Mailboxes, pipe: Callable[[], Pipe]) -> None:
    before = descriptors()
    reader, writer = pipe()
    boxes.send(0, message(b"1", *[writer] * MAX_DESCRIPTORS))
    packet = boxes.receive(0)
    assert packet is not None
    assert len(set(packet.descriptors)) == MAX_DESCRIPTORS
    for received in (*packet.descriptors, reader, writer):
        os.close(received)
    assert descriptors() == before


def test_more_than_that_are_a_mistake_of_the_senders_and_leak_nothing(
    boxes: Mailboxes, pipe: Callable[[], Pipe]
) -> None:
    _, writer = pipe()
    before = descriptors()
    boxes.send(0, message(b"1", *[writer] * (MAX_DESCRIPTORS + 1)))
    with pytest.raises(GarbledError, match="its descriptors are lost"):
        boxes.receive(0)
    assert descriptors() == before


def test_what_is_no_open_descriptor_is_said(boxes: Mailboxes, pipe: Callable[[], Pipe]) -> None:
    _, writer = pipe()
    os.close(writer)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - its number is looked at
        boxes.send(0, message(b"1", writer))
    assert raised.value.errno == errno.EBADF
    assert boxes.receive(0) is None


# --- garbled


GARBLED = {
    "empty": b"",
    "one byte": b"x",
    "half a head": b"\1" * (HEAD - 1),
    "unknown kind": b"\0" * HEAD + b"{}",
    "no kind at all": b"\xff" * 1000,
    "too long": module._HEAD.pack(1, 0, 0) + b"x" * (MAX_BODY + 1),
}
garbled = pytest.mark.parametrize("data", GARBLED.values(), ids=GARBLED)


@garbled
def test_what_is_no_packet_is_said_in_one_line_and_the_next_one_arrives(
    boxes: Mailboxes, data: bytes
) -> None:
    raw(boxes, 0, data)
    boxes.send(0, message(b"next"))
    with pytest.raises(GarbledError) as raised:
        boxes.receive(0)
    assert len(str(raised.value).splitlines()) == 1
    assert bodies(boxes, 0) == [b"next"]


@garbled
def test_the_descriptors_of_what_is_no_packet_are_closed(
    boxes: Mailboxes, data: bytes, pipe: Callable[[], Pipe]
) -> None:
    reader, writer = pipe()
    raw(boxes, 0, data or b"\0", (writer, writer))  # the kernel takes none without data
    os.close(writer)
    with pytest.raises(GarbledError):
        boxes.receive(0)
    assert has_ended(reader)


# --- owners


def test_a_new_owner_finds_nothing_and_descriptors_are_closed(
    boxes: Mailboxes, pipe: Callable[[], Pipe]
) -> None:
    reader, writer = pipe()
    boxes.send(0, message(b"1", writer))
    raw(boxes, 0, b"")
    boxes.send(0, message(b"x" * MAX_BODY, writer))
    boxes.send(1, message(b"beside"))
    os.close(writer)
    boxes.empty(0)
    assert bodies(boxes, 0) == []
    assert has_ended(reader)
    assert bodies(boxes, 1) == [b"beside"]
    boxes.empty(0)
    boxes.empty(7)  # there is none


def test_a_full_one_is_emptied(boxes: Mailboxes) -> None:
    room = fill(boxes, 0)
    boxes.empty(0)
    assert fill(boxes, 0) == room


def test_in_a_child_the_others_can_only_be_sent_to(boxes: Mailboxes) -> None:
    before = len(list(boxes.descriptors()))
    boxes.send(1, message(b"before"))
    boxes.keep(0)
    assert len(list(boxes.descriptors())) == before - 2
    boxes.send(0, message(b"own"))
    assert bodies(boxes, 0) == [b"own"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        boxes.receive(1)


def test_whoever_keeps_its_own_can_send_to_the_others() -> None:
    boxes = Mailboxes(2)
    child = os.fork()
    if child == 0:
        boxes.keep(1)
        boxes.send(0, message(b"from the child"))
        os._exit(0)
    os.waitpid(child, 0)
    assert bodies(boxes, 0) == [b"from the child"]
    boxes.close()


def test_what_was_on_its_way_to_a_process_that_died_is_for_its_owner_to_drop(boxes: Mailboxes) -> None:
    """The socket outlives the process: the arbiter has it, and its successor begins with `empty`."""
    child = os.fork()
    if child == 0:
        boxes.keep(0)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    boxes.send(0, message(b"late"))
    assert bodies(boxes, 0) == [b"late"]


def test_closing_closes_all_and_may_be_done_again() -> None:
    before = descriptors()
    boxes = Mailboxes(3)
    assert descriptors() == before + 2 * 4 == before + len(list(boxes.descriptors()))
    boxes.close()
    boxes.close()
    assert descriptors() == before
    assert list(boxes.descriptors()) == []


# --- where descriptors are short


SHORT = """
import resource
from multicore_server.ipc.mailboxes import Kind, Mailboxes, NoMailboxError, Packet

soft = {soft}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
boxes = Mailboxes({processes})
taken = len(list(boxes.descriptors()))
assert taken <= max(soft // 8, 4), taken
reached = 0
for number in range({processes} + 1):
    try:
        boxes.send(number, Packet(Kind.MESSAGE, 0, 0, b"{{}}"))
        assert boxes.receive(number).body == b"{{}}"
        reached += 1
    except NoMailboxError:
        assert boxes.short
        assert number not in (0, boxes.monitor)
        try:
            boxes.reader(number)
            raise SystemExit("a reader")
        except NoMailboxError:
            pass
        boxes.empty(number)
boxes.keep(0)
boxes.close()
print(boxes.short, reached)
"""


def short(soft: int, processes: int) -> str:
    program = SHORT.format(soft=soft, processes=processes)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("soft", "said"), [(1024, "False 51"), (256, "True 16"), (64, "True 4"), (20, "True 2")]
)
def test_as_many_as_the_process_can_afford(soft: int, said: str) -> None:
    assert short(soft, 50) == said


def test_without_a_limit_there_are_all(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    boxes = Mailboxes(4)
    assert not boxes.short
    boxes.close()


def test_there_is_no_mailbox_for_a_number_that_is_too_high(boxes: Mailboxes) -> None:
    for number in (3, -1):
        with pytest.raises(NoMailboxError, match=f"no mailbox for process {number}"):
            boxes.send(number, message(b"1"))


AT_THE_LIMIT = """
import os, resource
from multicore_server.ipc.mailboxes import GarbledError, Kind, Mailboxes, Packet

boxes = Mailboxes(1)
reader, writer = os.pipe()
for number in range(2):
    boxes.send(0, Packet(Kind.MESSAGE, 0, number, b"1", [writer] * 3))
os.close(writer)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
taken = []
while True:
    try:
        taken.append(os.dup(0))
    except OSError:
        break
os.close(taken.pop())
try:
    boxes.receive(0)
    raise SystemExit("received without descriptors")
except GarbledError as exc:
    assert "too many open" in str(exc)
for _ in range(3):
    os.close(taken.pop())
packet = boxes.receive(0)
assert packet.number == 1
for descriptor in packet.descriptors:
    os.close(descriptor)
assert os.read(reader, 1) == b""
"""


def test_a_receiver_without_descriptors_loses_that_packet_alone() -> None:
    command = [sys.executable, "-c", AT_THE_LIMIT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
