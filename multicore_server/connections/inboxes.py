"""Inboxes: carry a connection's descriptor from one worker to another.

Each slot has one socket pair, made before the first fork and inherited by all. So nothing in an inbox is lost
with a worker: its successor or any sibling can take it. It is a sequenced-packet socket, because a datagram
socket's queue holds 10 messages (``net.unix.max_dgram_qlen``). Descriptors travel as SCM_RIGHTS, see unix(7).
A message has one byte for each of its descriptors, so the bytes in an inbox are the connections in it.
"""

from __future__ import annotations

import _socket
import array
import fcntl
import logging
import os
import socket
import termios
import weakref
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from multicore_server.ipc import seqpacket

# Connections in one message. The kernel takes 253 (SCM_MAX_FD), but who receives them has to adopt them all
# before it does anything else: 32 take it about 3 ms.
BATCH = 32
DESCRIPTOR_SPACE = seqpacket.space_for(BATCH)

logger = logging.getLogger("gunicorn.error")


class Kind(IntEnum):
    NEW = 0  # no byte of it has been read
    KEPT_ALIVE = 1  # it has had a response and waits for its next request


KINDS = tuple(Kind)


class Connection(socket.socket):
    """A socket whose family and type are numbers: a loop that adopts it asks for them seven times, and
    `socket.socket` makes enumeration members of them each time."""

    __slots__ = ()
    family = _socket.socket.family  # type: ignore[assignment]  # a number
    type = _socket.socket.type  # type: ignore[assignment]


class Handed(NamedTuple):
    """A connection that was taken out of an inbox, or accepted by hand."""

    kind: Kind
    connection: socket.socket


class Sent(NamedTuple):
    """A connection that is to go into an inbox."""

    kind: Kind
    descriptor: int


class Inboxes:
    """One inbox for each of ``slots`` slots. Every process holds both ends of all of them."""

    def __init__(self, slots: int) -> None:
        self._pairs = [seqpacket.pair() for _ in range(slots)]
        # At the end of each process, too: `python -X dev` names every socket that is left open.
        self._close = weakref.finalize(self, seqpacket.close_all, self._pairs)
        self._size = array.array("i", [0])

    def reader(self, slot: int) -> socket.socket:
        """The end that becomes readable when something is in the inbox."""
        return self._pairs[slot][0]

    def close(self) -> None:
        """In this process. Idempotent."""
        self._close()

    def descriptors(self) -> Iterator[int]:
        for pair in self._pairs:
            for end in pair:
                yield end.fileno()

    def waiting(self, slot: int) -> int:
        """How many connections are in the inbox: exact, the kernel counts the bytes (FIONREAD, unix(7))."""
        fcntl.ioctl(self._pairs[slot][0].fileno(), termios.FIONREAD, self._size)
        return self._size[0]

    def send(self, slot: int, connections: Sequence[Sent]) -> None:
        """Put up to `BATCH` connections into an inbox, all or none. Raises OSError as `seqpacket.send`."""
        kinds = bytes([connection.kind for connection in connections])
        seqpacket.send(self._pairs[slot][1], kinds, [connection.descriptor for connection in connections])

    def receive(self, slot: int) -> list[Handed]:
        """Take the connections of one message out of an inbox; empty if there is none. They stay there, and
        OSError is raised, if there are no descriptors for them."""
        end = self._pairs[slot][0]
        try:
            self._check_room(len(end.recv(BATCH, socket.MSG_PEEK)))
            message, descriptors, flags = seqpacket.receive(end, BATCH, DESCRIPTOR_SPACE)
        except BlockingIOError:
            return []
        if flags & seqpacket.CTRUNC:  # another worker took what was looked at, and this message is larger
            lost = len(message) - len(descriptors)
            logger.error("%d connections were lost on their way: no descriptors were left for them", lost)
        return [
            Handed(KINDS[kind], Connection(fileno=descriptor))
            for kind, descriptor in zip(message, descriptors, strict=False)
        ]

    def _check_room(self, connections: int) -> None:
        """A connection that is received while there is no descriptor left is lost."""
        some, taken = self._pairs[0][0].fileno(), []
        try:
            for _ in range(connections):
                taken.append(os.dup(some))  # noqa: PERF401 - those before a failure are to be closed
        finally:
            for descriptor in taken:
                os.close(descriptor)
