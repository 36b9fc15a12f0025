"""Chooses the names of this process's metrics files, so that their number stays bounded.

A worker's files are named by its row of the scoreboard. A process that a worker forks takes the lowest number
that no living process has. It holds a POSIX lock on a file with that number, and the kernel releases the lock
when the process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
from itertools import count
from pathlib import Path

from multicore_server.metrics.app.directory import Directory


class Identity:
    """The identifier of this process: the arbiter makes the object, and forked processes inherit it.

    A worker calls `take_row` after its fork. Any other forked process claims a number of its own.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._base = self._name = directory.arbiter
        self._pid = os.getpid()

    def take_row(self, row: int) -> None:
        """Make this process the owner of a worker's row."""
        self._base = self._name = self.directory.identifier(row)
        self._pid = os.getpid()
        self.directory.reset(self._name)

    def path(self, kind: str) -> Path:
        """Return this process's file for values of ``kind``, such as ``gauge_livesum``."""
        if self._pid != os.getpid():
            self._claim()
        return self.directory.path / f"{kind}_{self._name}.db"

    def _claim(self) -> None:
        try:
            self._name = next(filter(self._is_free, map(self._child, count())))
            self.directory.reset(self._name)
        except OSError:  # no descriptors, or no room: use the pid, although nobody can use that name again
            self._name = f"{self._base}-p{os.getpid()}"
        self._pid = os.getpid()

    def _child(self, number: int) -> str:
        return f"{self._base}-{number}"

    def _is_free(self, name: str) -> bool:
        """Take the name if no living process has it, and return whether that worked."""
        return _lock(lock_of(self.directory.path, name))


def lock_of(directory: Path, identifier: str) -> Path:
    return directory / f"{identifier}.lock"


def is_held(lock: Path) -> bool:
    """Return whether a living process holds the lock. True if this cannot be determined.

    The holder must not call this: closing the file would release its lock.
    """
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _lock(path: Path) -> bool:
    """Try to take the lock, and return whether it worked.

    The file stays open, so this process keeps the lock until it exits. Raises OSError if the file cannot be
    made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
