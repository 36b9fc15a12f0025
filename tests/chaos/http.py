"""A strict HTTP/1.1 client on asyncio: it reads every byte, and takes nothing that is not an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 20.0  # seconds that an answer may take on a loaded machine


class BrokenError(Exception):
    """The connection ended, or what came is no answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens: a port of this machine or a unix socket; TLS where there is a context."""

    port: int
    path: Path | None = None
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    fields: dict[bytes, bytes]
    body: bytes

    @property
    def is_last(self) -> bool:
        return self.fields.get(b"connection", b"").lower() == b"close"


class Connection:
    """``idle_since``: when its last answer was complete, or it was opened; monotonic seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.idle_since = time.monotonic()

    @classmethod
    async def open(cls, address: Address, buffer: int | None = None) -> Connection:
        """With a receive buffer of so many bytes, or the kernel's own choice. Raises OSError."""
        family = socket.AF_INET if address.path is None else socket.AF_UNIX
        plain = socket.socket(family)
        plain.setblocking(False)
        if buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        target = ("127.0.0.1", address.port) if address.path is None else str(address.path)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(plain, target), PATIENCE)
            return cls(*await asyncio.wait_for(_streams(plain, address, buffer), PATIENCE))
        except BaseException:
            plain.close()
            raise

    @property
    def has_ended(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    async def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            self._writer.write(piece)
            await self._writer.drain()

    async def answer(self, *, pause: float = 0.0) -> Answer:
        """The next answer, complete; with a pause after each block that is read of its body."""
        answer = await asyncio.wait_for(self._answer(pause), PATIENCE)
        self.idle_since = time.monotonic()
        return answer

    async def _answer(self, pause: float) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        if not first.startswith(b"HTTP/1.1 "):
            raise BrokenError(f"no answer: {first!r}")
        pairs = (line.partition(b": ") for line in lines)
        fields = {name.lower(): value for name, _, value in pairs}
        if b"content-length" in fields:
            body = await self._exactly(int(fields[b"content-length"]), pause)
        else:
            body = await self._chunks()
        return Answer(int(first.split()[1]), fields, body)

    async def _exactly(self, length: int, pause: float) -> bytes:
        body = bytearray()
        while len(body) < length:
            block = await self._reader.read(min(65536, length - len(body)))
            if not block:
                raise BrokenError(f"ended after {len(body)} of {length} bytes of the body")
            body += block
            if pause:
                await asyncio.sleep(pause)
        return bytes(body)

    async def _chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            block = await self._reader.readexactly(size + 2)
            if block[-2:] != b"\r\n":
                raise BrokenError("a chunk without an end")
            if not size:
                return body
            body += block[:-2]

    def close(self) -> None:
        self._writer.close()


async def _streams(
    plain: socket.socket, address: Address, buffer: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    name = "localhost" if address.tls else None
    return await asyncio.open_connection(
        sock=plain, ssl=address.tls, server_hostname=name, limit=buffer or 2**16
    )
