"""Keeps uvloop from reading a connection, from another thread than the loop's.

The loop stands still meanwhile, in a call of the app's. When it goes on, the kernel reports nothing more of
the connection to it.
"""

from __future__ import annotations

import os
import select
import weakref
from typing import Any


def reading_of(loop: Any) -> Reading | None:
    """None for a loop other than uvloop's, or a system without epoll."""
    if not hasattr(select, "epoll"):
        return None
    if type(loop).__module__.partition(".")[0] == "uvloop" and hasattr(loop, "_get_backend_id"):
        return Reading(loop._get_backend_id())
    return None


class Reading:
    """uvloop reads what epoll reports, and runs nothing of the app's between the two.

    libuv notes what it wants to know of a descriptor, and tells epoll of it before it waits. A connection of
    which it has noted something must be left alone: it would be read again, or, as epoll does not know it any
    more, libuv would abort the process.
    """

    def __init__(self, backend: int) -> None:
        own = os.dup(backend)  # the same epoll, see epoll(7): an object that closes it may go
        self._epoll = select.epoll.fromfd(own)
        weakref.finalize(self, self._epoll.close)

    def stop(self, connection: Any) -> bool:
        """Whether the connection was read from, and is not any more."""
        try:
            self._epoll.unregister(_descriptor(connection))
        except OSError:  # it is paused, or not yet known there
            return False
        return True

    def resume(self, connection: Any) -> None:
        """Undo `stop`."""
        try:
            self._epoll.register(_descriptor(connection), select.EPOLLIN)
        except OSError:  # it is closed meanwhile
            return


def _descriptor(connection: Any) -> int:
    number: int = connection.transport.get_extra_info("socket").fileno()
    return number
