"""The report in shared memory: the arbiter writes it, the monitor reads it.

Pure: the standard library alone. There is one writer. It never waits for its readers, however many they are.
This is a sequence lock (like the kernel's, see Documentation/locking/seqlock.rst) with a checksum in place of
memory barriers. The writer never blocks. A reader that is stopped or gone costs nothing, and a later reader
sees everything.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib

_HEAD = struct.Struct("QQI")  # changes, length, checksum
MAX_TRIES = 100


class SharedReport:
    """Room for ``capacity`` bytes; pages that are never written take no memory."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._memory = mmap.mmap(-1, _HEAD.size + capacity)

    @property
    def changes(self) -> int:
        """Grows with every `publish`."""
        return int(_HEAD.unpack_from(self._memory)[0])

    def publish(self, text: bytes) -> None:
        """Replace what it says. Raises ValueError if there is no room for it."""
        if len(text) > self._capacity:
            raise ValueError(f"{len(text)} bytes are more than the {self._capacity} that there is room for")
        changes = self.changes
        self._memory[_HEAD.size : _HEAD.size + len(text)] = text
        self._memory[: _HEAD.size] = _HEAD.pack((changes + 1) % 2**64, len(text), zlib.crc32(text))

    def read(self) -> bytes:
        """What it says now; empty before the first `publish`."""
        for _ in range(MAX_TRIES):
            _, length, checksum = _HEAD.unpack_from(self._memory)
            text = self._memory[_HEAD.size : _HEAD.size + min(length, self._capacity)]
            if zlib.crc32(text) == checksum:
                return text
            time.sleep(0.0005)  # it is being written
        raise RuntimeError("the shared_report changes without a pause")
