"""Binding the addresses: at the start with patience, at a reload without, and with one line when it fails."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gunicorn import sock, util

PATIENCE = 5.0  # seconds to wait for a taken address at the start, as gunicorn: a restart may overlap
RETRY = 0.25


class BindError(Exception):
    """An address that cannot be listened on: one line with what to do."""


def bind(
    cfg: Any, log: Any, *, patience: float = 0.0, wait: Callable[[float], None] = time.sleep,
    kept: dict[Any, Any] | None = None, resolved: Mapping[str, str] | None = None,
) -> list[Any]:  # fmt: skip
    """The listeners for ``cfg.address``; those in ``kept`` (by address) stay as they are. ``resolved`` as of
    `resolve`; other names are looked up here.

    Raises BindError, with everything closed that was newly bound.
    """
    kept = kept or {}
    if not cfg.address:
        raise BindError("bind: there is no address to listen on; give host:port or unix:PATH")
    bound = dict(kept)
    try:
        for address in cfg.address:
            if address not in bound:
                bound[address] = _bind_one(address, resolved or {}, cfg, log, patience, wait)
    except BaseException:
        unbind([listener for address, listener in bound.items() if address not in kept])
        raise
    return [bound[address] for address in dict.fromkeys(cfg.address)]


def unbind(listeners: list[Any], *, unlink: bool = True) -> None:
    """Close listeners and remove the files of unix sockets."""
    with contextlib.suppress(OSError):  # somebody else may have removed the file
        sock.close_sockets(listeners, unlink)


def resolve(addresses: Iterable[Any]) -> dict[str, str]:
    """The IP addresses of the names among them: IPv4, as gunicorn takes what is no IPv6 address.

    Raises BindError where there is no such name. What is no name at all is left to `bind`.
    """
    found = {}
    for address in addresses:
        if isinstance(address, tuple) and not util.is_ipv6(address[0]):
            try:
                host = address[0]
                found[host] = str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
            except OSError as exc:
                raise BindError(f"cannot listen on {_text(address)}: {_advice(exc)}") from exc
            except (ValueError, TypeError):
                continue
    return found


def _bind_one(
    address: Any,
    resolved: Mapping[str, str],
    cfg: Any,
    log: Any,
    patience: float,
    wait: Callable[[float], None],
) -> Any:
    if isinstance(address, int):
        return inherit(address, cfg, log)
    place = (resolved.get(address[0], address[0]), *address[1:]) if isinstance(address, tuple) else address
    deadline = time.monotonic() + patience
    while True:
        try:
            _refuse_if_served(address)
            return _closing(sock._sock_type(place))(place, cfg, log)
        except OSError as exc:  # noqa: PERF203 - it waits
            if exc.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise BindError(f"cannot listen on {_text(address)}: {_advice(exc)}") from exc
            wait(RETRY)
        except (ValueError, TypeError, OverflowError) as exc:  # a path that is no socket; a NUL; port 65536
            raise BindError(f"cannot listen on {_text(address)}: {exc}") from exc


@functools.cache
def _closing(kind: Any) -> Any:
    """gunicorn's class of a listener, which drops a socket that it cannot bind: here it is closed."""

    class Closing(kind):  # type: ignore[misc]  # gunicorn has no types
        def set_options(self, sock: socket.socket, bound: bool = False) -> socket.socket:
            try:
                found: socket.socket = super().set_options(sock, bound)
            except BaseException:
                sock.close()
                raise
            return found

    Closing.__name__ = kind.__name__
    return Closing


def _refuse_if_served(address: Any) -> None:
    """gunicorn removes any unix socket in its way, also that of a server that is running."""
    if isinstance(address, str) and not address.startswith("\0"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            if probe.connect_ex(address) in (0, errno.EAGAIN):
                raise OSError(errno.EADDRINUSE, "somebody listens there")


def inherit(fd: int, cfg: Any, log: Any) -> Any:
    """The listener behind an open descriptor. Raises BindError."""
    try:
        return sock.create_sockets(_OnlyFds(cfg, fd), log)[0]
    except OSError as exc:
        raise BindError(f"cannot listen on fd://{fd}: {exc.strerror}; is it an open socket?") from exc


class _OnlyFds:
    """A configuration whose one address is this descriptor."""

    def __init__(self, cfg: Any, fd: int) -> None:
        self._cfg = cfg
        self.address = [fd]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def _text(address: Any) -> str:
    return f"unix:{address}" if isinstance(address, str) else f"{address[0]}:{address[1]}"


def _advice(exc: OSError) -> str:
    advice = {
        errno.EADDRINUSE: "the address is in use (is another server running? `ss -lntxp` shows it)",
        errno.EADDRNOTAVAIL: "this machine has no such address",
        errno.EACCES: "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)",
    }
    return advice.get(exc.errno or 0, exc.strerror or str(exc))
