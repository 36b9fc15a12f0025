"""A request's body, read before the app is called, and a response's body that is a file."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from starlette.types import Receive

IN_MEMORY = 1024 * 1024
_FILE_BLOCK = 64 * 1024


async def read_body(receive: Receive, spool_dir: str | None = None) -> BinaryIO | None:
    """Read the whole request body, up to 1 MiB in memory, a larger one in a temporary file.

    An inline app blocks the loop's thread, so no data could arrive while the app reads. Returns None if the
    client disconnected.
    """
    body: BinaryIO = io.BytesIO()
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                body.close()
                return None
            body.write(message.get("body", b""))
            if not message.get("more_body", False):
                break
            if body.tell() > IN_MEMORY and isinstance(body, io.BytesIO):
                body = _spool(body, spool_dir)
    except BaseException:
        body.close()
        raise
    return body


def rewind(body: BinaryIO) -> int:
    """Go to the start of the body and return its length in bytes."""
    length = body.tell()
    body.seek(0)
    return length


def _spool(body: io.BytesIO, spool_dir: str | None) -> BinaryIO:
    spooled = cast("BinaryIO", tempfile.TemporaryFile(dir=spool_dir))  # noqa: SIM115 - the bridge closes it
    spooled.write(body.getbuffer())
    return spooled


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
