"""The lock of the primary worker; made before the first fork, and inherited by all workers."""

from __future__ import annotations

import contextlib
import os

from multicore_server.ipc.locks import SharedLocks

_ALL = 4096  # bytes: who hears of it hears of all


class PrimaryLock:
    """``freed`` is readable after it was freed, in every process that waits for it."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._locks = SharedLocks("primary")
        self.freed, self._news = os.pipe()
        for end in (self.freed, self._news):
            os.set_blocking(end, False)

    def take(self) -> bool:
        return self._locks.take(0)

    def free(self) -> None:
        self._locks.free(0)
        self.announce()

    def announce(self) -> None:
        """It may be free: by `free`, or by its holder's end, of which only the arbiter hears."""
        with contextlib.suppress(OSError):  # full: whoever waits is awake
            os.write(self._news, b"\n")

    def hear(self) -> None:
        """One of those who wait has heard of it."""
        with contextlib.suppress(BlockingIOError):  # another one was faster
            os.read(self.freed, _ALL)

    def close(self) -> None:
        """In this process."""
        self._locks.close()
        os.close(self.freed)
        os.close(self._news)
