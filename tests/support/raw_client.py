"""A client that sees every byte: requests in parts, several at once, and how a connection ends."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

PATIENCE = 20.0  # seconds that anything may take on a loaded machine


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether the server has announced that it will close the connection."""
        return self.headers.get("connection", "").lower() == "close"


def request(path: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One connection to a port of this machine, or to a unix socket."""

    def __init__(
        self,
        address: int | str,
        tls: ssl.SSLContext | None = None,
        buffer: int | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        inet = socket.AF_INET6 if ":" in host else socket.AF_INET
        family = socket.AF_UNIX if isinstance(address, str) else inet
        self.socket = socket.socket(family)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(address if isinstance(address, str) else (host, address))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> Connection:
        self.socket.sendall(data)
        return self

    def head(self) -> Answer:
        """The next status line and headers."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed before a response")
        headers = {}
        while (field := self._file.readline().strip()) != b"":
            name, _, value = field.partition(b":")
            headers[name.decode().lower()] = value.strip().decode("latin-1")
        return Answer(int(line.split()[1]), headers, b"")

    def answer(self, *, bodiless: bool = False) -> Answer:
        """The next response, complete."""
        head = self.head()
        if bodiless or head.status in (100, 204, 304):
            return head
        if head.headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        else:
            body = self.read(int(head.headers["content-length"]))
        return Answer(head.status, head.headers, body)

    def chunk(self) -> bytes:
        """The next block of a chunked body; empty at its end."""
        size = int(self._file.readline(), 16)
        data = self.read(size)
        self._file.readline()
        return data

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise ConnectionError(f"closed after {len(data)} of {size} bytes")
        return data

    def ends(self) -> bool:
        """Wait for the end of the connection: whether it came and nothing before it."""
        return self._file.read(1) == b""

    def tls_cipher(self) -> str:
        assert isinstance(self.socket, ssl.SSLSocket)
        cipher = self.socket.cipher()
        assert cipher is not None
        return cipher[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.socket.close()


Connect: TypeAlias = Callable[..., Connection]
