"""``ps --all``: lists the servers of all users, for root.

Files of other users are not trusted: no link is followed, the process that answers must belong to the owner
of the directory, and an answer may be neither long nor slow.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from multicore_server.cli.servers import NoAnswerError, RunningServer, Trouble, command_sockets
from multicore_server.machine.directories import temporary_directory

MOST = 32  # servers of one directory
MOST_FILES = 1000  # that are looked at for them
RUN = Path("/run")


def running_of_all() -> list[RunningServer]:
    """In the order of their pids. Raises Trouble for everybody but root."""
    if os.geteuid() != 0:
        raise Trouble("--all: the servers of other users are root's to see; without it, yours are listed")
    found = [server for directory in _directories() for server in _servers(directory)]
    if not found:
        return []
    with ThreadPoolExecutor(8) as pool:
        listening = list(pool.map(RunningServer.listens, found))
    there = [server for server, listens in zip(found, listening, strict=True) if listens]
    return sorted(there, key=lambda it: it.pid)


def user_of(server: RunningServer) -> str:
    """The name of the user who owns it, or the number."""
    assert server.owner is not None
    try:
        return pwd.getpwuid(server.owner).pw_name
    except KeyError:
        return str(server.owner)


@contextlib.contextmanager
def understood(server: RunningServer) -> Iterator[None]:
    """Around what is made of a server's answer: another user's may hold anything. Raises NoAnswerError."""
    try:
        yield
    except Exception as exc:
        if server.owner is None or isinstance(exc, Trouble):
            raise
        raise NoAnswerError(f"{server} answers what no server does: {type(exc).__name__}") from None


def _directories() -> Iterator[Path]:
    """Where `command_directory` is, for whatever user and ``XDG_RUNTIME_DIR``."""
    for directory in temporary_directory().glob("multicore-server-*"):
        if directory.name.rpartition("-")[2] == str(_owner(directory)):
            yield directory
    yield from RUN.glob("user/*/multicore-server")
    yield from RUN.glob("*/multicore-server")


def _owner(directory: Path) -> int | None:
    """Who owns a directory that nobody else may write; None where it is not one."""
    with contextlib.suppress(OSError):
        status = directory.lstat()
        if stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077:
            return status.st_uid
    return None


def _servers(directory: Path) -> list[RunningServer]:
    owner = _owner(directory)
    if owner is None:
        return []
    paths = islice(command_sockets(directory), MOST_FILES)
    return [RunningServer(path, owner) for path in islice(filter(_is_socket, paths), MOST)]


def _is_socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(path.lstat().st_mode)
    return False
