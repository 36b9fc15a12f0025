"""Keeps an event loop from reading a connection, from another thread than the loop's.

The loop is blocked at this time, in a call of the app. But it may continue at any moment, close the
connection and open something else under the same descriptor number. So no step relies on a number alone.
"""

from __future__ import annotations

import asyncio
import os
import select
import weakref
from typing import Any, Protocol


class Reading(Protocol):
    def stop(self, connection: Any, own: int) -> bool:
        """Whether the connection was read from, and is not any more. ``own`` is a duplicate of its
        descriptor."""
        ...

    def is_stopped(self, connection: Any) -> bool:
        """Whether it is not read from after `stop`: the loop may have gone on between two steps of that."""
        ...

    def resume(self, connection: Any) -> None:
        """Undo `stop`."""
        ...


def reading_of(loop: Any) -> Reading | None:
    """None for a loop of another kind, or a system without epoll."""
    if not hasattr(select, "epoll"):
        return None
    if type(loop).__module__.partition(".")[0] == "uvloop" and hasattr(loop, "_get_backend_id"):
        return OfUvloop(loop._get_backend_id())
    if isinstance(loop, asyncio.SelectorEventLoop) and hasattr(loop, "_add_reader"):
        return OfAsyncio(loop)
    return None


class OfUvloop:
    """It reads what epoll reports, and runs no task between the two (see `standstill.is_in_app`).

    libuv notes what it wants to know of a descriptor, and tells epoll of it before it waits. A connection of
    which it has noted something must be left alone: it would be read again, or, as epoll does not know it any
    more, libuv would abort the process.
    """

    def __init__(self, backend: int) -> None:
        own = os.dup(backend)  # the same epoll, see epoll(7): an object that closes it may go
        self._epoll = select.epoll.fromfd(own)
        weakref.finalize(self, self._epoll.close)

    def stop(self, connection: Any, own: int) -> bool:
        number = _descriptor(connection.transport)
        try:
            self._epoll.unregister(number)
        except OSError:  # it is paused, or not yet known there
            return False
        if _is_same(number, own):
            return True
        self._register(number)  # of something else, which the loop has opened in this moment
        return False

    def is_stopped(self, connection: Any) -> bool:
        return True  # it was one step

    def resume(self, connection: Any) -> None:
        self._register(_descriptor(connection.transport))

    def _register(self, number: int) -> None:
        try:
            self._epoll.register(number, select.EPOLLIN)
        except OSError:  # it is closed meanwhile
            return


class OfAsyncio:
    """It puts what epoll reports into a queue of handles, and leaves out those that were cancelled. A handle
    is of one transport, whatever becomes of its number."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop

    def stop(self, connection: Any, own: int) -> bool:
        handle = self._handle_of(connection.transport)
        if handle is None or handle.cancelled():
            return False
        handle._cancelled = True  # its cancel() would take away what the loop may be about to call
        return True

    def is_stopped(self, connection: Any) -> bool:
        handle = self._handle_of(connection.transport)
        return handle is None or handle.cancelled()

    def _handle_of(self, transport: Any) -> Any:
        """That reads; None where nothing does."""
        try:
            handle, _ = self._loop._selector.get_map()[_descriptor(transport)].data
        except (KeyError, ValueError):  # it is paused, not yet known there, or closed
            return None
        # A method: it equals another one where both are of one object.
        reads = getattr(transport, "_read_ready", None)
        return handle if reads is not None and getattr(handle, "_callback", None) == reads else None

    def resume(self, connection: Any) -> None:
        self._loop.call_soon_threadsafe(self._resume, connection.transport)

    def _resume(self, transport: Any) -> None:
        if transport.is_reading() and not transport.is_closing():
            self._loop._add_reader(_descriptor(transport), transport._read_ready)


def _descriptor(transport: Any) -> int:
    number: int = transport.get_extra_info("socket").fileno()
    return number


def _is_same(number: int, other: int) -> bool:
    """Whether both are of one socket: it has an inode of its own."""
    try:
        return os.path.sameopenfile(number, other)
    except OSError:
        return False
