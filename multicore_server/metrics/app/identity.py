"""Which of the files in the directory are this process's, bounded however many processes come and go.

A worker's are called by its row of the scoreboard. A process that a worker forks takes the lowest number that
no living one has: a POSIX lock on a file of that number tells, which the kernel gives up at its death.
"""

from __future__ import annotations

import errno
import fcntl
import os
from itertools import count
from pathlib import Path

from multicore_server.metrics.app.directory import Directory


class Identity:
    """Of the process that makes it, the arbiter; of a worker that was forked and has called `become`; of
    any other process that was forked meanwhile."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self._base = self._name = directory.arbiter
        self._pid = os.getpid()

    def become(self, row: int) -> None:
        """This process is now the worker of this row."""
        self._base = self._name = self.directory.identifier(row)
        self._pid = os.getpid()
        self.directory.begin(self._name)

    def path(self, kind: str) -> Path:
        """This process's file for values of ``kind``, such as ``gauge_livesum``."""
        if self._pid != os.getpid():
            self._claim()
        return self.directory.path / f"{kind}_{self._name}.db"

    def _claim(self) -> None:
        try:
            self._name = next(filter(self._is_free, map(self._child, count())))
            self.directory.begin(self._name)
        except OSError:  # no descriptors, or no room: then so be it that nobody uses the name again
            self._name = f"{self._base}-p{os.getpid()}"
        self._pid = os.getpid()

    def _child(self, number: int) -> str:
        return f"{self._base}-{number}"

    def _is_free(self, name: str) -> bool:
        """Whether nobody has the name; then it is ours."""
        return _lock(lock_of(self.directory.path, name))


def lock_of(directory: Path, identifier: str) -> Path:
    return directory / f"{identifier}.lock"


def is_held(lock: Path) -> bool:
    """Whether a living process has the lock; True also if that cannot be told. Not for the holder to ask:
    closing the file gives its lock up."""
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
    """Take the lock for as long as this process lives, by leaving the file open. Raises OSError if there can
    be no such file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
