"""The two addresses of a connection: the server's and the client's."""

from __future__ import annotations

import _socket
import socket
from typing import Any, TypeAlias

Address: TypeAlias = "tuple[str, int | None] | None"
WILDCARDS = ("0.0.0.0", "::")


def addresses(transport: Any, local: Address) -> tuple[Address, Address]:
    """The ``server`` and the ``client`` of an ASGI scope; None where there is none. ``local`` is the first of
    them where it is known.

    A transport of TCP has asked the kernel already. uvicorn asks it for a socket, which makes two objects and
    five system calls of it.
    """
    peer = transport.get_extra_info("peername")
    if type(peer) is not tuple or any(peer[3:]):  # not TCP, or uvloop leaves out the scope of an IPv6 address
        return _by_socket(transport.get_extra_info("socket"), local)
    return local or transport.get_extra_info("sockname")[:2], peer[:2]


def _by_socket(held: Any, local: Address) -> tuple[Address, Address]:
    try:
        raw = _socket.socket(fileno=-1 if held is None else held.fileno())
    except (OSError, ValueError):  # it is closed
        return local, None
    try:
        return local or _as_server(raw.getsockname()), _as_client(raw)
    finally:
        raw.detach()


def _as_server(name: Any) -> Address:
    return name[:2] if isinstance(name, tuple) else (name, None)


def _as_client(raw: Any) -> Address:
    try:
        name = raw.getpeername()
    except OSError:  # it has left
        return None
    return name[:2] if isinstance(name, tuple) else None


def only_address(listener: socket.socket) -> Address:
    """The address of all connections that come to a listener; None where it may be one of several."""
    if listener.family == socket.AF_UNIX:
        return _as_server(listener.getsockname())
    host, port = listener.getsockname()[:2]
    return None if host in WILDCARDS else (host, port)
