"""Binds the addresses: patiently at the start, at once in a reload, with one line if it fails."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gunicorn import sock, util

from multicore_server.machine.directories import check_makable

PATIENCE = 5.0  # seconds to wait for a taken address at the start, as gunicorn: a restart may overlap
RETRY = 0.25
NO_ADDRESS = "bind: there is no address to listen on; give host:port or unix:PATH"
_ADVICE = {
    errno.EADDRINUSE: "the address is in use (is another server running? `ss -lntxp` shows it)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "permission denied (a port below 1024 needs root or CAP_NET_BIND_SERVICE)",
}


class BindError(Exception):
    """An address that cannot be listened on: one line with what to do. ``taken``: somebody else has it."""

    def __init__(self, line: str, *, taken: bool = False) -> None:
        super().__init__(line)
        self.taken = taken


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
        raise BindError(NO_ADDRESS)
    bound = dict(kept)
    try:
        for address in cfg.address:
            if address not in bound:
                bound[address] = _bind_one(address, resolved or {}, cfg, log, patience, wait)
                bound[address].configured = address  # for `pairing`
    except BaseException:
        unbind([listener for address, listener in bound.items() if address not in kept])
        raise
    return [bound[address] for address in dict.fromkeys(cfg.address)]


def refusals(cfg: Any) -> list[BindError]:
    """What `bind` would raise now, for each address. Nothing stays bound; nobody can connect meanwhile."""
    if not cfg.address:
        return [BindError(NO_ADDRESS)]
    return [refused for address in cfg.address if (refused := _refused(address, cfg))]


def _refused(address: Any, cfg: Any) -> BindError | None:
    try:
        _try_out(address, cfg)
    except (OSError, ValueError, TypeError, OverflowError) as exc:
        return _refusal(address, exc)
    return None


def _try_out(address: Any, cfg: Any) -> None:
    if isinstance(address, int):
        with socket.socket(fileno=os.dup(address)):  # raises where it is no socket
            return
    if isinstance(address, str) and not address.startswith("\0"):
        _refuse_if_served(address)
        _refuse_unusable(Path(address))
        return
    with socket.socket(sock._sock_type(address).FAMILY) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if cfg.reuse_port:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(address)


def _refuse_unusable(path: Path) -> None:
    """As gunicorn, which binds a unix socket in the place of one at which nobody listens."""
    if path.exists() and not path.is_socket():
        raise ValueError(f"{str(path)!r} is not a socket")
    check_makable(path)


def unbind(listeners: list[Any], *, unlink: bool = True) -> None:
    """Close listeners and remove the files of unix sockets."""
    for listener in listeners:
        with contextlib.suppress(OSError):  # somebody else may have removed the file
            sock.close_sockets([listener], unlink)


def resolve(addresses: Iterable[Any]) -> dict[str, str]:
    """The IP addresses of the names among them: IPv4, as gunicorn takes what is no IPv6 address.

    Raises BindError where there is no such name. What is no name at all is left to `bind`.
    """
    found = {}
    for address in addresses:
        if isinstance(address, tuple) and address[0] and not util.is_ipv6(address[0]):
            try:
                host = address[0]
                found[host] = str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
            except OSError as exc:
                raise _refusal(address, exc) from exc
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
                raise _refusal(address, exc) from exc
            wait(RETRY)
        except (ValueError, TypeError, OverflowError) as exc:  # a path that is no socket; a NUL; port 65536
            raise _refusal(address, exc) from exc


@functools.cache
def _closing(kind: Any) -> Any:
    """gunicorn's class of a listener, which drops a socket that it cannot bind: here it is closed."""

    class Closing(kind):  # type: ignore[misc]  # gunicorn has no types
        def set_options(self, sock: socket.socket, bound: bool = False) -> socket.socket:
            os.umask(umask := os.umask(0o077))
            try:
                found: socket.socket = super().set_options(sock, bound)
            except BaseException:
                os.umask(umask)  # gunicorn leaves its own behind
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
                raise OSError(errno.EADDRINUSE, "another process listens there")


def inherit(fd: int, cfg: Any, log: Any) -> Any:
    """The listener behind an open descriptor. Raises BindError."""
    try:
        return sock.create_sockets(_OnlyFds(cfg, fd), log)[0]
    except OSError as exc:
        raise _refusal(fd, exc) from exc


class _OnlyFds:
    """A configuration whose one address is this descriptor."""

    def __init__(self, cfg: Any, fd: int) -> None:
        self._cfg = cfg
        self.address = [fd]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


def _refusal(address: Any, exc: Exception) -> BindError:
    reason = (_ADVICE.get(exc.errno or 0) or exc.strerror) if isinstance(exc, OSError) else None
    if isinstance(address, str) and isinstance(exc, PermissionError):
        reason = "permission denied (its directory is to be writable)"
    if isinstance(address, int):
        return BindError(f"cannot listen on {text_of(address)}: {reason}; is it an open socket?")
    taken = isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE
    return BindError(f"cannot listen on {text_of(address)}: {reason or exc}", taken=taken)


def text_of(address: Any) -> str:
    """An address as a user gives it to ``bind``."""
    if isinstance(address, int):
        return f"fd://{address}"
    return f"unix:{address}" if isinstance(address, str) else f"{address[0]}:{address[1]}"
