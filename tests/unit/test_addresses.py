"""Where a connection came to and from: as uvicorn says it, with fewer system calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from multicore_server.connections.addresses import addresses, only_address


class Transport:
    def __init__(self, held: Any) -> None:
        self._held = held

    def get_extra_info(self, name: str) -> Any:
        return self._held if name == "socket" else None


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::", "unix"])
def accepted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Any, socket.socket, Any]]:
    """A listener, a connection that it has accepted, and its client."""
    host = request.param
    if host == "unix":
        listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "app.sock"))
        listener.listen()
        client.connect(str(tmp_path / "app.sock"))
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        client = socket.create_connection((target, listener.getsockname()[1]))
    connection, _ = listener.accept()
    yield listener, connection, client
    for each in (listener, connection, client):
        each.close()


def uvicorns(connection: socket.socket) -> tuple[Any, Any]:
    """Older ones do not say which Unix socket it was."""
    transport: Any = Transport(connection)
    path = (connection.getsockname(), None) if connection.family == socket.AF_UNIX else None
    return get_local_addr(transport) or path, get_remote_addr(transport)


def test_it_is_what_uvicorn_says(accepted: tuple[Any, socket.socket, Any]) -> None:
    listener, connection, _ = accepted
    local = only_address(listener)
    assert addresses(Transport(connection), None) == uvicorns(connection)
    assert addresses(Transport(connection), local) == uvicorns(connection)
    wildcard = listener.family != socket.AF_UNIX and listener.getsockname()[0] in ("0.0.0.0", "::")
    assert (local is None) == wildcard


def test_a_client_that_has_left_has_no_address(accepted: tuple[Any, socket.socket, Any]) -> None:
    _, connection, client = accepted
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    connection.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        connection.recv(1)
    assert addresses(Transport(connection), None) == uvicorns(connection)


def test_a_descriptor_that_is_closed_has_none() -> None:
    with socket.socket() as closed:
        pass
    assert addresses(Transport(closed), ("127.0.0.1", 80)) == (("127.0.0.1", 80), None)
    assert addresses(Transport(None), None) == (None, None)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "unix"])
def test_a_transport_says_what_uvicorn_says(runner: Any, host: str, tmp_path: Path) -> None:
    """TCP without a look at the socket."""
    found: list[Any] = []

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            found.extend((addresses(transport, None), uvicorns(transport.get_extra_info("socket"))))
            transport.close()

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        path = str(tmp_path / "app.sock")
        if host == "unix":
            server: Any = await loop.create_unix_server(Accepted, path)
            reader, writer = await asyncio.open_unix_connection(path)
        else:
            server = await loop.create_server(Accepted, host, 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    runner(connect())
    said, expected = found
    assert said == expected
    assert said[0] is not None


def test_the_scope_of_an_address_is_not_lost() -> None:
    """uvloop's transports have an address of IPv6 without its scope."""

    class WithScope(Transport):
        def get_extra_info(self, name: str) -> Any:
            return ("fe80::1", 1, 0, 2) if name == "peername" else super().get_extra_info(name)

    class Held:
        def fileno(self) -> int:
            return -1

    held: Any = Held()
    assert addresses(WithScope(held), ("::", 80)) == (("::", 80), None)  # the socket was asked
