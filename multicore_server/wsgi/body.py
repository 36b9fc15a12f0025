"""Reads a request's body before the app is called, and sends a response's body that is a file."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, BinaryIO

from starlette.types import Message, Receive

from multicore_server.machine.directories import temporary_file

IN_MEMORY = 1024 * 1024
_FILE_BLOCK = 64 * 1024


async def read_body(receive: Receive, spool_dirs: Sequence[str | None] = (None,)) -> BinaryIO | None:
    """Read the whole request body, up to 1 MiB in memory, a larger one in a temporary file.

    An inline app blocks the loop's thread, so no data could arrive while the app reads. Returns None if the
        client disconnected. Raises OSError if there is no room for the body; it leaves nothing behind then.
    """
    body: BinaryIO = io.BytesIO()
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                _discard(body)
                return None
            body.write(message.get("body", b""))
            if not message.get("more_body", False):
                break
            if body.tell() > IN_MEMORY and isinstance(body, io.BytesIO):
                body = _spool(body, spool_dirs)
        body.flush()
    except BaseException:
        _discard(body)
        raise
    return body


def rewind(body: BinaryIO) -> int:
    """Go to the start of the body and return its length in bytes."""
    length = body.tell()
    body.seek(0)
    return length


def _spool(body: io.BytesIO, spool_dirs: Sequence[str | None]) -> BinaryIO:
    """Go on in a temporary file."""
    spooled = temporary_file(spool_dirs)
    try:
        spooled.write(body.getbuffer())
    except BaseException:
        _discard(spooled)
        raise
    return spooled


def _discard(body: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # closing writes what is buffered, and there may be no room
        body.close()


class BodyLost(ConnectionResetError):  # noqa: N818 - a disconnect is rarely an error
    """The rest of a request's body will not come. Reading ``wsgi.input`` raises it, as a socket would."""


class ArrivingBody(io.RawIOBase):
    """``wsgi.input`` for an app in a thread: its reads wait for what arrives.

    Raises BodyLost where the client leaves before the end. It is wrapped in `io.BufferedReader`.
    """

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive = receive
        self._loop = loop
        self._rest = memoryview(b"")
        self._waiting: Future[Message] | None = None
        self._aborted = False
        self.complete = False  # all of it has come

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self.complete:
            self._take(self._next())
        size = min(len(self._rest), len(buffer))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _take(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            raise BodyLost("the client left before its request was complete")
        self._rest = memoryview(message.get("body", b""))
        self.complete = not message.get("more_body", False)

    def _next(self) -> Message:
        receiving: Any = self._receive()
        try:
            self._waiting = asyncio.run_coroutine_threadsafe(receiving, self._loop)
        except RuntimeError:  # the loop is closed
            receiving.close()  # nobody else has it, while one that was handed over is the loop's alone
            raise BodyLost("the request was given up") from None
        # abort() sets the flag and then looks here, this the other way round: one of them sees the other.
        if self._aborted:
            self._waiting.cancel()
        try:
            return self._waiting.result()
        except CancelledError:
            raise BodyLost("the request was given up") from None

    def abort(self) -> None:
        """From the loop's thread: nothing more will come."""
        self._aborted = True
        if self._waiting is not None:
            self._waiting.cancel()


class FileWrapper:
    """``wsgi.file_wrapper``: iterates over a file-like object (PEP 3333, "Optional Platform-Specific…").

    The block size is a suggestion. Each block costs a turn of the loop, so a small block size is raised.
    """

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike
        self.block_size = max(block_size, _FILE_BLOCK)
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data
