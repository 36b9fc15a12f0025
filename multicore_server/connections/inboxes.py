"""Inboxes: how a connection's descriptor gets from one worker to another.

One socket pair a slot, made before the first fork and inherited by all, so nothing in an inbox is lost with
a worker: its successor or any sibling can take it. A sequenced-packet socket, because a datagram socket's
queue holds 10 (``net.unix.max_dgram_qlen``). Descriptors travel as SCM_RIGHTS, see unix(7).
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios
from enum import IntEnum
from typing import NamedTuple

MESSAGE_SIZE = 1  # byte: the kind; all else, also where it came in, the connection itself knows

DESCRIPTOR_SPACE = socket.CMSG_SPACE(array.array("i").itemsize)


class Kind(IntEnum):
    NEW = 0  # no byte of it has been read
    KEPT_ALIVE = 1  # it has had a response and waits for its next request


class Handed(NamedTuple):
    kind: Kind
    connection: socket.socket


class Inboxes:
    """One inbox for each of ``slots`` slots. Every process holds both ends of all of them."""

    def __init__(self, slots: int) -> None:
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        for pair in self._pairs:
            for end in pair:
                end.setblocking(False)
        self._size = array.array("i", [0])

    def reader(self, slot: int) -> socket.socket:
        """The end that becomes readable when something lies in the inbox."""
        return self._pairs[slot][0]

    def waiting(self, slot: int) -> int:
        """How many connections are in the inbox: exact, the kernel counts the bytes (FIONREAD, unix(7))."""
        fcntl.ioctl(self._pairs[slot][0].fileno(), termios.FIONREAD, self._size)
        return self._size[0] // MESSAGE_SIZE

    def send(self, slot: int, kind: Kind, descriptor: int) -> None:
        """Put a connection into an inbox. Raises OSError when it is full or the kernel refuses."""
        socket.send_fds(self._pairs[slot][1], [bytes((kind,))], [descriptor])

    def receive(self, slot: int) -> Handed | None:
        """Take a connection out of an inbox; None if there is none. It stays there, and OSError is raised,
        if there is no descriptor for it."""
        self._check_room()
        try:
            # Not by socket.recv_fds: it ignores its flags, and subprocesses would inherit what it receives.
            message, ancillary, _, _ = self._pairs[slot][0].recvmsg(
                MESSAGE_SIZE, DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        if not ancillary:
            return None
        descriptor = array.array("i", ancillary[0][2])[0]
        return Handed(Kind(message[0]), socket.socket(fileno=descriptor))

    def _check_room(self) -> None:
        """A connection that is received while there is no descriptor left is lost."""
        os.close(os.dup(self._pairs[0][0].fileno()))
