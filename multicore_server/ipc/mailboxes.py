"""Mailboxes: carry a message from one process to another, without a third process.

There is one socket pair for each row of the scoreboard, and so for each process that can be alive, and one
more for the monitor. All are made before the first fork. They are sequenced-packet sockets, as for the
inboxes of connections: these keep order and message boundaries, and the sender never waits. The queue is the
kernel's. Its size is the buffer of the sending end (SO_SNDBUF), which all senders to one mailbox share.

Pure: the standard library alone.
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from multicore_server.ipc import seqpacket

MAX_BODY = 64 * 1024  # bytes
MAX_DESCRIPTORS = 16  # with one message
ROOM = 1024 * 1024  # bytes wanted for a mailbox; the kernel gives up to 2 x net.core.wmem_max
SHARE = 8  # the mailboxes may take 1/SHARE of the descriptors that a process may open

_HEAD = struct.Struct("=BhI")  # kind, sender, number
_LARGEST = _HEAD.size + MAX_BODY
_SPACE = seqpacket.space_for(MAX_DESCRIPTORS)

ARBITER = -1  # as a sender; a worker's is the number of its instance
MONITOR = -2


class Kind(IntEnum):
    MESSAGE = 1  # of the app; the body is JSON
    ACTION = 2  # the monitor asks a worker
    ANSWER = 3  # the worker answers


class Packet(NamedTuple):
    """``number`` is of the question, in an answer too; ``descriptors`` are the receiver's to close."""

    kind: Kind
    sender: int
    number: int
    body: bytes
    descriptors: Sequence[int] = ()


class GarbledError(ValueError):
    """What was in a mailbox is no packet, or has lost a part on its way. One line."""


class NoMailboxError(OSError):
    """There is none for this process: descriptors were short when the server started."""


class Mailboxes:
    """For ``processes`` processes. Raises OSError where there are not enough descriptors for one of them."""

    def __init__(self, processes: int) -> None:
        self.monitor = processes
        wanted, granted = processes + 1, _affordable()
        # The monitor's comes last, and is made in any case.
        numbers = [*range(min(wanted - 1, max(granted - 1, 1))), self.monitor]
        self._pairs = {number: seqpacket.pair() for number in numbers}
        for reader, writer in self._pairs.values():
            writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
            if seqpacket.KIND == socket.SOCK_DGRAM:  # the BSDs queue them at the reader's end
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        self.short = len(numbers) < wanted
        self._close = weakref.finalize(self, seqpacket.close_all, self._pairs.values())

    def send(self, to: int, packet: Packet) -> None:
        """Raises OSError: EAGAIN when the mailbox is full, EBADF for what is no open descriptor."""
        if to not in self._pairs:
            raise NoMailboxError(f"there is no mailbox for process {to}")
        end = self._pairs[to][1]
        data = _HEAD.pack(packet.kind, packet.sender, packet.number) + packet.body
        if packet.descriptors:
            seqpacket.send(end, data, packet.descriptors)
        else:
            end.send(data)

    def receive(self, number: int) -> Packet | None:
        """Take a packet out; None where there is none. Raises GarbledError."""
        try:
            data, descriptors, flags = seqpacket.receive(self.reader(number), _LARGEST, _SPACE)
        except BlockingIOError:
            return None
        try:
            if flags & seqpacket.CTRUNC:
                raise GarbledError("its descriptors are lost: this process has too many open")
            if flags & seqpacket.TRUNC or len(data) < _HEAD.size:
                raise GarbledError(f"it has {len(data)} bytes")
            kind, sender, asked = _HEAD.unpack_from(data)
            return Packet(_kind(kind), sender, asked, data[_HEAD.size :], descriptors)
        except GarbledError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise

    def reader(self, number: int) -> socket.socket:
        """The end that becomes readable when something is in the mailbox. Raises NoMailboxError."""
        if number not in self._pairs:
            raise NoMailboxError(f"there is no mailbox for process {number}")
        return self._pairs[number][0]

    def empty(self, number: int) -> None:
        """For a new owner: what was for the former one is lost, and the kernel closes its descriptors."""
        if number not in self._pairs:
            return
        reader = self._pairs[number][0]
        try:
            while True:
                reader.recv(1)
        except OSError:  # there is no more; or no memory
            return

    def keep(self, number: int) -> None:
        """In a child: close the mailboxes of all others, for reading."""
        for other, (reader, _) in self._pairs.items():
            if other != number:
                reader.close()

    def descriptors(self) -> Iterator[int]:
        """Those that are open in this process."""
        for pair in self._pairs.values():
            for end in pair:
                if end.fileno() >= 0:
                    yield end.fileno()

    def close(self) -> None:
        """In this process. Idempotent."""
        self._close()


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise GarbledError(f"it is of no known kind ({number})") from None


def _affordable() -> int:
    """How many mailboxes there may be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft // SHARE // 2
