"""Reads the client that a proxy announces by the PROXY protocol, before the first byte of HTTP or TLS.

The header is read from the socket before the socket has a transport, and only up to the header's last byte.
So TLS begins behind the header as it would without one. If the first byte shows that there is no header,
nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable, Collection
from functools import partial
from http import HTTPStatus
from typing import Any

from multicore_server.connections.proxy_protocol import LONGEST, Endpoint, Header, HeaderError, header_in

VERSIONS = {"v1": (1,), "v2": (2,), "auto": (1, 2)}  # by the values of gunicorn's proxy_protocol
PAUSE = 0.01  # seconds
_GONE = select.POLLERR | select.POLLHUP | getattr(select, "POLLRDHUP", 0)  # Linux has it

logger = logging.getLogger("gunicorn.error")


class AnnouncedClient(tuple[str, int]):  # noqa: SLOT001 - a tuple's subclass has no room for slots
    """The address of a client, as in a scope, and who has announced it."""

    peer: Endpoint | None  # whose socket it is; None: a Unix socket's
    protocol: str  # TCP4, TCP6
    proxy: Endpoint  # where the client has connected to


class Announcements:
    """Of the proxies that ``trusts`` names. ``timeout`` is for a whole header, in seconds; 0: none.

    ``secure``: TLS follows, and nobody can be answered before that.
    """

    def __init__(
        self, versions: Collection[int], trusts: Callable[[str], bool], timeout: float, *, secure: bool
    ) -> None:
        self._versions = versions
        self._trusts = trusts
        self._timeout = timeout
        self._secure = secure
        self._loop = asyncio.get_running_loop()

    async def read(self, connection: socket.socket, protocol: Any) -> None:
        """Take the header off a new connection, and let its protocol know. Raises OSError where the
        connection is to be closed."""
        try:
            found = self._look(connection)
            if found is None:
                found = await asyncio.wait_for(self._whole(connection), self._timeout or None)
            if not found.size:
                return
            peer = self._trusted_peer(connection)
            _take(connection, found.size)
        except HeaderError as exc:
            self._refuse(protocol, self._status_for(connection), f"a bad PROXY header: {exc}")
        except PermissionError as exc:
            self._refuse(protocol, HTTPStatus.FORBIDDEN, str(exc))
        except asyncio.TimeoutError:
            if not _peek(connection):
                raise ConnectionAbortedError("no byte arrived") from None
            self._refuse(protocol, HTTPStatus.REQUEST_TIMEOUT, "an incomplete PROXY header")
        else:
            protocol.stays = True
            if found.source is not None:
                _announce(protocol, _client(found, peer))

    def _look(self, connection: socket.socket) -> Header | None:
        """What has come, without taking it; None: it does not tell yet."""
        return header_in(_peek(connection), self._versions)

    async def _whole(self, connection: socket.socket) -> Header:
        while (found := self._look(connection)) is None:
            await self._more_than(connection, len(_peek(connection)))
        return found

    async def _more_than(self, connection: socket.socket, size: int) -> None:
        """Wait until more bytes have come than these, which stay where they are."""
        # A socket with unread bytes is readable: from now on, with so many. Unix sockets do not know that.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size + 1)
        try:
            await self._readable(connection)
        finally:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if len(_peek(connection)) <= size:
            if _is_gone(connection):
                raise ConnectionResetError("closed within a PROXY header")
            await asyncio.sleep(PAUSE)

    async def _readable(self, connection: socket.socket) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(connection, _tell, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(connection)

    def _trusted_peer(self, connection: socket.socket) -> Endpoint | None:
        """Raises PermissionError where the peer may not announce anybody."""
        if connection.family == socket.AF_UNIX:
            return None
        host, port = connection.getpeername()[:2]
        if not self._trusts(host):
            raise PermissionError(f"{host} is not in proxy_allow_ips")
        return host, port

    def _status_for(self, connection: socket.socket) -> HTTPStatus:
        try:
            self._trusted_peer(connection)
        except PermissionError:
            return HTTPStatus.FORBIDDEN
        return HTTPStatus.BAD_REQUEST

    def _refuse(self, protocol: Any, status: HTTPStatus, why: str) -> None:
        """Close the connection; answer first, where a client can read that."""
        logger.warning("a connection is refused with %d: %s", status, why)
        if self._secure or not hasattr(protocol, "refuse"):
            raise ConnectionAbortedError(why)
        _when_made(protocol, lambda: protocol.refuse(status))


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _peek(connection: socket.socket) -> bytes:
    """Empty where nothing has come. Raises OSError where nothing will."""
    try:
        data = connection.recv(LONGEST, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
    if not data:
        raise ConnectionResetError("closed before its first byte")
    return data


def _take(connection: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(connection.recv(size))


def _is_gone(connection: socket.socket) -> bool:
    """Whether its client sends no more."""
    poll = select.poll()
    poll.register(connection, _GONE)
    return bool(poll.poll(0))


# --- what the protocol sees


def _client(header: Header, peer: Endpoint | None) -> AnnouncedClient:
    assert header.source is not None
    assert header.destination is not None
    client = AnnouncedClient(header.source)
    client.peer, client.protocol, client.proxy = peer, header.protocol, header.destination
    return client


def _announce(protocol: Any, client: AnnouncedClient) -> None:
    """Let a protocol, and the WebSocket's that may take its place, have this client."""

    def name(protocol: Any) -> None:
        protocol.client = client
        upgraded = getattr(protocol, "ws_protocol_class", None)
        if upgraded is not None:
            protocol.ws_protocol_class = partial(_announced, upgraded, client)

    def tell() -> None:
        if hasattr(protocol, "once_known"):  # it is to become another one
            protocol.once_known(name)
        else:
            name(protocol)

    _when_made(protocol, tell)


def _announced(make: Callable[..., Any], client: AnnouncedClient, **given: Any) -> Any:
    protocol = make(**given)
    _announce(protocol, client)
    return protocol


def _when_made(protocol: Any, then: Callable[[], None]) -> None:
    """Have ``then`` called when the protocol has been given its connection."""
    made = protocol.connection_made

    def connection_made(transport: Any) -> None:
        del protocol.connection_made  # this one
        made(transport)
        then()

    protocol.connection_made = connection_made
