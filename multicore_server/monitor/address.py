"""The monitor's addresses: its read-only address, and a command socket for each running server.

The arbiter binds them before it gives up any privileges, and the monitor inherits them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from multicore_server.machine.directories import check_makable, temporary_directory

BACKLOG = 64  # connections that the kernel holds until they are accepted
SUFFIX = ".sock"


class AddressError(OSError):
    """An address or a directory that cannot be used: one line with what to do."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


# --- the command socket ---


def command_directory(*, make: bool = True) -> Path:
    """Return the directory of this user's command sockets. It has mode 0700.

    If it is missing, it is made, unless somebody only looks for servers. Raises AddressError where it cannot
    be made, or is not safe to use.
    """
    directory = _directory()
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        elif not os.path.lexists(directory):
            return directory
        status = directory.lstat()  # of a symbolic link itself
    except OSError as exc:
        raise _error(exc, f"cannot make {directory} for the command socket") from exc
    if trouble := _trouble(status):
        text = f"{directory} cannot hold the command socket: it {trouble}; remove it or set XDG_RUNTIME_DIR"
        raise AddressError(errno.EACCES, text)
    return directory


def command_path(pid: int) -> Path:
    """The command socket of the arbiter with this pid. Raises AddressError as `command_directory`."""
    return command_directory() / f"{pid}{SUFFIX}"


def bind_command(path: Path) -> socket.socket:
    """Listen at ``path`` for this user alone (mode 0600); removes what dead servers left beside it.

    Raises AddressError.
    """
    remove_stale(path.parent)
    # It gets its final name when it listens: until then it would look like a stale socket.
    new = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX)
    try:
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        new.chmod(0o600)
        listener.listen(BACKLOG)
        new.replace(path)
    except OSError as exc:
        listener.close()
        raise _error(exc, f"cannot listen on the command socket {path}") from exc
    return listener


def remove_stale(directory: Path) -> None:
    """Remove the command sockets at which nobody listens."""
    for path in directory.glob(f"*{SUFFIX}"):
        if path.stem.isdecimal() and _is_stale(path):
            path.unlink(missing_ok=True)


def _directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):
        # After su or sudo it can be the other user's.
        if os.path.isabs(runtime) and os.stat(runtime).st_uid == os.geteuid():  # noqa: PTH116, PTH117
            return Path(runtime) / "multicore-server"
    return temporary_directory() / f"multicore-server-{os.geteuid()}"


def _trouble(status: os.stat_result) -> str | None:
    """Why a directory cannot be trusted."""
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid != os.geteuid():
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & 0o077:
        return f"is open to others (mode {stat.S_IMODE(status.st_mode):04o}, not 0700)"
    return None


# --- the read-only address ---


def bind_metrics(address: str) -> socket.socket:
    """Listen at ``host:port``, ``[::1]:port`` or ``unix:PATH``, as `metrics_bind` has it.

    A unix socket that a dead process left is replaced. Raises AddressError.
    """
    with _explained(address):
        if address.startswith("unix:"):
            return _listen_unix(Path(address.removeprefix("unix:")))
        return _listen_tcp(address)


def try_metrics(address: str) -> None:
    """Raise AddressError as `bind_metrics` would now. Nothing stays bound, nobody can connect meanwhile."""
    with _explained(address):
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            _find_usable(path)
            check_makable(path)
        else:
            _bind_tcp(address).close()


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise _error(exc, f"metrics_bind: cannot listen on {address}") from exc
    except ValueError as exc:  # a name that cannot be one ("0..0"), a NUL in a path
        raise AddressError(errno.EINVAL, f"metrics_bind: cannot listen on {address}: {exc}") from exc


def pages(address: str, listener: socket.socket) -> str:
    """A line that says where the metrics and the live page are, by the port that was bound."""
    if address.startswith("unix:"):
        return f"metrics: /metrics on {address}; live page: / there"
    site = f"http://{address.rpartition(':')[0]}:{listener.getsockname()[1]}/"
    return f"metrics: {site}metrics; live page: {site}"


def is_numeric(address: str) -> bool:
    """Whether no name server is asked to bind it."""
    if address.startswith("unix:"):
        return True
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), port, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
    except (OSError, ValueError):
        return False
    return True


def resolve(address: str) -> str:
    """The numeric address of ``host:port``; may take as long as name servers do.

    Raises AddressError with the reason alone.
    """
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise AddressError(exc.errno or errno.EINVAL, exc.strerror or str(exc)) from exc
    except ValueError as exc:  # a name that cannot be one: "0..0"
        raise AddressError(errno.EINVAL, str(exc)) from exc
    family, _, _, _, place = found[0]
    number, port_number = str(place[0]), int(place[1])
    return f"[{number}]:{port_number}" if family == socket.AF_INET6 else f"{number}:{port_number}"


def unbind(listener: socket.socket, path: Path | None = None) -> None:
    """Remove the file of a listener, and close it: ``path``, where that is not what it was bound to.

    In this order: where somebody listens, no other server has put a socket of its own in that place.
    """
    with listener:
        bound = listener.getsockname()
        if path is None and isinstance(bound, str) and bound:
            path = Path(bound)
        if path is not None:
            with contextlib.suppress(OSError):  # somebody else may have removed it
                path.unlink()


def file_of(address: str) -> Path | None:
    """Return the absolute path of a `metrics_bind` that is a unix socket, else None."""
    return Path(address.removeprefix("unix:")).absolute() if address.startswith("unix:") else None


def _listen_tcp(address: str) -> socket.socket:
    listener = _bind_tcp(address)
    with _closed_on_error(listener):
        listener.listen(BACKLOG)
    return listener


def _bind_tcp(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    # Where the protocol is not named, asyncio does not set TCP_NODELAY: each answer took 40 ms.
    listener = socket.socket(family, kind, protocol)
    with _closed_on_error(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    return listener


def _find_usable(path: Path) -> bool:
    """Whether a socket is there, and nobody listens at it. Raises OSError where something else is, ValueError
    where the path has a NUL: bind() would take what is before it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    if not path.is_socket():
        raise OSError(errno.EEXIST, "there is a file that is not a socket")
    if not _is_stale(path):
        raise OSError(errno.EADDRINUSE, "another process listens there")
    return True


def _listen_unix(path: Path) -> socket.socket:
    if _find_usable(path):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    with _closed_on_error(listener):
        listener.bind(str(path))
        listener.listen(BACKLOG)
    return listener


@contextlib.contextmanager
def _closed_on_error(listener: socket.socket) -> Iterator[None]:
    """Any error: a path with a NUL is a ValueError, one with half a surrogate pair a UnicodeError."""
    try:
        yield
    except BaseException:
        listener.close()
        raise


def _is_stale(path: Path) -> bool:
    """Whether nobody listens at this unix socket. The pid in its name may be another container's."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


_ADVICE = {
    errno.EADDRINUSE: "the address is in use (is another server running? `ss -lntxp` shows it); "
    "give another metrics_bind",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "permission denied",
}


def _error(exc: OSError, what: str) -> AddressError:
    # A path that is too long has a text and no number.
    reason = _ADVICE.get(exc.errno or 0) or exc.strerror or str(exc)
    return AddressError(exc.errno or errno.EINVAL, f"{what}: {reason}")
