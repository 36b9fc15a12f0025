"""Open file descriptors: how many a process may have, and how to release some that others know by number.

Pure: it imports only the standard library.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import resource
import socket
import termios
from collections.abc import Iterable

OPEN_MAX = 10240  # what macOS grants where the hard limit is "unlimited"


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one.

    Every connection and every worker's channel needs a descriptor, and the soft limit is often 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, OPEN_MAX):
        with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
            if limit != soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


def lead_nowhere(descriptors: Iterable[int]) -> None:
    """Let go of what is behind these descriptors.

    Each stays open, and is a socket that nobody can reach: other threads, and objects that will close it, may
    use its number at any moment. Where no descriptor is free for that socket, nothing happens.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as unreachable:
        for descriptor in descriptors:
            with contextlib.suppress(OSError, ValueError):  # it is closed already
                os.dup2(unreachable.fileno(), descriptor, inheritable=False)


def has_unread(descriptor: int) -> bool:
    """Whether bytes have come to this socket that nobody has read (FIONREAD, tcp(7) and unix(7))."""
    size = array.array("i", [0])
    with contextlib.suppress(OSError):  # it is no socket any more
        fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0] > 0
