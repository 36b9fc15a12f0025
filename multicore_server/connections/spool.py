"""Keeps the parts of WSGI responses that slow clients have not taken yet.

A WSGI app holds the event loop's thread, or one of a few threads, until its response is sent. So it must not
wait for a client. What a client does not take at once goes into a spool, first in memory, then in a temporary
file. The app continues at its own pace until the spool is full. (nginx: proxy_buffering,
proxy_max_temp_file_size.)
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from multicore_server.machine.directories import temporary_file

IN_MEMORY = 256 * 1024  # bytes of a spool, before it is a file
EACH = 128 * 1024 * 1024  # bytes of a spool
ALL = 4 * EACH  # bytes of all spools of a worker
SHARE = 4  # a spool may be the 1 / SHARE of what a file system has free without it
LOOK = 1024 * 1024  # bytes that are written between two looks at that
BLOCK = 64 * 1024  # bytes that are read from a file at once
TURN = 16  # blocks that are sent before other connections have their turn


class Spools:
    """The room that the spools of a worker share; ``directories`` as for `temporary_file`."""

    def __init__(self, directories: Sequence[str | None] = (None,), room: int = ALL) -> None:
        self.directories = directories
        self.room = room


class Spool:
    """Bytes that wait, the first to come the first to go."""

    def __init__(self, spools: Spools) -> None:
        self.size = 0  # bytes that wait
        self._spools = spools
        self._limit = EACH
        self._early: deque[bytes] = deque()  # came before there was a file
        self._file: BinaryIO | None = None
        self._read = self._written = 0  # bytes of the file
        self._look_due = 0  # when so many are written
        self._late: deque[bytes] = deque()  # came when the file took no more

    @property
    def is_full(self) -> bool:
        return self.size >= self._limit or self._spools.room <= 0

    def put(self, data: bytes) -> None:
        """Add bytes. They are taken in any case: who adds to a full spool has them in memory."""
        self.size += len(data)
        self._spools.room -= len(data)
        if self._file is None and self.size > IN_MEMORY and self._limit:
            self._open()
        if self._file is None:
            self._early.append(data)
        elif rest := self._write(data):
            self._late.append(bytes(rest))

    def _open(self) -> None:
        try:
            self._file = temporary_file(self._spools.directories)
            self._look()
        except OSError:  # no directory, no descriptor: until this spool is empty the app waits
            self._limit = 0

    def _look(self) -> None:
        """Leave room for others in the file system."""
        assert self._file is not None
        system = os.fstatvfs(self._file.fileno())
        free = system.f_bavail * system.f_frsize
        self._limit = min(EACH, (self._written + free) // SHARE)
        self._look_due = self._written + LOOK

    def _write(self, data: bytes) -> memoryview:
        """Return what the file has not taken. It takes no more then: what follows must stay behind that."""
        assert self._file is not None
        rest = memoryview(data)
        try:
            if self._written >= self._look_due:
                self._look()
            while rest and not self._late:
                count = os.pwrite(self._file.fileno(), rest, self._written)
                self._written += count
                rest = rest[count:]
        except OSError:  # the file system is full
            self._limit = 0
        return rest

    def take(self) -> bytes:
        """Remove and return some bytes. Raises OSError where the file cannot be read."""
        if self._early:
            data = self._early.popleft()
        elif self._read < self._written:
            data = self._take_from_file()
        else:  # the file has taken nothing
            data = self._late.popleft()
        self.size -= len(data)
        self._spools.room += len(data)
        if not self.size:
            self._limit = EACH
        return data

    def _take_from_file(self) -> bytes:
        assert self._file is not None
        data = os.pread(self._file.fileno(), BLOCK, self._read)
        if not data:
            raise OSError("a temporary file has lost what was written to it")
        self._read += len(data)
        if self._read == self._written:
            self._file.close()
            self._file, self._read, self._written = None, 0, 0
            self._early, self._late = self._late, deque()
        return data

    def close(self) -> None:
        """Give up what waits, and its room."""
        self._spools.room += self.size
        self.size = 0
        self._early.clear()
        self._late.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class SpooledTransport:
    """A transport whose ``write`` does not grow its buffer above the high-water mark, but a spool.

    While nothing waits, its methods are the transport's own, so that a response pays for nothing.
    """

    write: Callable[[bytes], None]
    writelines: Callable[[Iterable[bytes]], None]
    close: Callable[[], None]
    is_closing: Callable[[], bool]
    get_write_buffer_size: Callable[[], int]
    can_write_eof: Callable[[], bool]

    def __init__(self, transport: Any, protocol: Any, spools: Spools) -> None:
        self._transport = transport
        self._protocol = weakref.ref(protocol)  # which has us: nothing is left for the garbage collector
        self._spools = spools
        self._spool: Spool | None = None
        self._blocked = False  # the transport's buffer is above its high-water mark
        self._closes = False  # when all is sent
        self._pass_through()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _pass_through(self) -> None:
        transport = self._transport
        self.write = transport.write
        self.writelines = transport.writelines
        self.close = transport.close
        self.is_closing = transport.is_closing
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.can_write_eof = transport.can_write_eof

    # --- what the transport says to its protocol

    def block(self) -> None:
        """The transport's buffer is above its high-water mark."""
        self._blocked = True
        if self._spool is None:
            self._spool = spool = Spool(self._spools)
            self.write = self._put
            self.writelines = self._put_all
            self.close = self._close_when_sent
            self.is_closing = lambda: self._closes or self._transport.is_closing()
            self.get_write_buffer_size = lambda: self._transport.get_write_buffer_size() + spool.size
            self.can_write_eof = lambda: False
        self._pace_app()

    def unblock(self) -> None:
        """Its buffer is below its low-water mark."""
        self._blocked = False
        self._send()

    def lose(self) -> None:
        """The connection is lost, and what waits with it."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None
            self._pass_through()

    # --- while something waits

    def _put(self, data: bytes) -> None:
        assert self._spool is not None
        self._spool.put(data)
        self._pace_app()

    def _put_all(self, parts: Iterable[bytes]) -> None:
        for data in parts:
            self._put(data)

    def _pace_app(self) -> None:
        protocol = self._protocol()
        if protocol is None:
            return
        flow = protocol.flow
        if self._spool is not None and self._spool.is_full:
            flow.pause_writing()
        else:
            flow.resume_writing()

    def _send(self) -> None:
        spool, transport, protocol = self._spool, self._transport, self._protocol()
        if spool is None or protocol is None or transport.is_closing():
            return
        try:
            for _ in range(TURN):
                if not spool.size or self._blocked:
                    break
                transport.write(spool.take())
        except OSError:  # the rest of the response cannot be had any more
            transport.abort()
            return
        if spool.size and not self._blocked:
            protocol.loop.call_soon(self._send)
        elif not spool.size and not self._blocked:
            self._end_spool(spool)
        self._pace_app()

    def _end_spool(self, spool: Spool) -> None:
        spool.close()
        self._spool = None
        self._pass_through()
        if self._closes:
            self.close()

    def _close_when_sent(self) -> None:
        self._closes = True
        if not self._transport.is_closing():
            self._transport.pause_reading()


class SpoolingProtocol:
    """Mixed into a protocol of uvicorn's: where its transport has a spool, the app's pace is the spool's."""

    transport: Any
    flowed: bool

    def pause_writing(self) -> None:
        if isinstance(self.transport, SpooledTransport):
            self.transport.block()
        else:
            super().pause_writing()  # type: ignore[misc]  # of the protocol

    def resume_writing(self) -> None:
        if isinstance(self.transport, SpooledTransport):
            self.flowed = True
            self.transport.unblock()
        else:
            super().resume_writing()  # type: ignore[misc]  # as above

    def lose_spool(self) -> None:
        """The connection is lost."""
        if isinstance(self.transport, SpooledTransport):
            self.transport.lose()
