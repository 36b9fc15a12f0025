"""Locks between processes that were forked from one. The kernel frees a lock when its holder exits."""

from __future__ import annotations

import fcntl
import os

from multicore_server.ipc.memory_file import memory_file


class SharedLocks:
    """As many locks as there are numbers: record locks on the bytes of a file that has no name (fcntl(2)).

    A lock belongs to a process, not to a thread, and a process that has it can take it again. A child does
    not inherit it.
    """

    def __init__(self, name: str) -> None:
        """Before the first fork. Raises OSError."""
        self._file = memory_file(name)

    def take(self, number: int) -> bool:
        """Take a lock, or return False where another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def free(self, number: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """In this process, which frees what it has."""
        os.close(self._file)
