"""Sequenced-packet sockets between processes: they keep message boundaries and carry descriptors.

A datagram socket's queue would hold 10 messages (``net.unix.max_dgram_qlen``). Where the system has no others
(macOS), datagram sockets do instead. Pure: the standard library alone.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

Pair: TypeAlias = "tuple[socket.socket, socket.socket]"  # the end to read from, and the one to write to


def _kind() -> socket.SocketKind:
    try:
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            end.close()
    except (AttributeError, OSError):  # macOS has the name alone
        return socket.SOCK_DGRAM
    return socket.SOCK_SEQPACKET


KIND = _kind()
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
# Of `Received`. As numbers: an operator of the enumeration takes a microsecond.
CTRUNC = int(socket.MSG_CTRUNC)
TRUNC = int(socket.MSG_TRUNC)


class Received(NamedTuple):
    data: bytes
    descriptors: Sequence[int]  # the receiver's to close; no subprocess inherits them
    flags: int  # CTRUNC: descriptors are lost; TRUNC: bytes are


def pair() -> Pair:
    """Neither end waits."""
    made = socket.socketpair(socket.AF_UNIX, KIND)
    for end in made:
        end.setblocking(False)
    return made


def space_for(descriptors: int) -> int:
    """Bytes of ancillary data."""
    return socket.CMSG_SPACE(descriptors * array.array("i").itemsize)


def send(end: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Put one message with descriptors in. Raises OSError: EAGAIN when there is no room, ETOOMANYREFS when
    this user has more of them under way than a process may open."""
    end.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


def receive(end: socket.socket, size: int, space: int) -> Received:
    """Take one message. Raises BlockingIOError where there is none."""
    # Not by socket.recv_fds: it ignores its flags, and subprocesses would inherit what it receives.
    data, ancillary, flags, _ = end.recvmsg(size, space, _CLOEXEC)
    descriptors = array.array("i", ancillary[0][2]) if ancillary else ()
    if not _CLOEXEC:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
    return Received(data, descriptors, flags)


def close_all(pairs: Iterable[Pair]) -> None:
    for ends in pairs:
        for end in ends:
            end.close()
