"""Reads and writes the files of prometheus_client's multiprocess mode, without the risk of SIGBUS.

Pure: it imports only the standard library. prometheus_client's own collector can read the files too. The
format (``prometheus_client/mmap_dict.py``) starts with the number of bytes in use, as an int in the first 8
bytes. Then come the entries. An entry has the length of its key as an int, the key (JSON, padded with at
least one space so that the next field is at a multiple of 8), the value and the time stamp as doubles.
prometheus_client uses the time stamp of mostrecent gauges alone. Entries are only added, never removed.

If the file system is full, a write to a mapped page without a block kills the process by SIGBUS. So the
blocks are allocated first here.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

HEADER_SIZE = 8  # bytes
CELL_SIZE = 8  # bytes, a double
INITIAL_SIZE = 1 << 14  # bytes, allocated at once; prometheus_client's 64 KiB would waste memory
LARGEST = 1 << 26  # bytes

Cells: TypeAlias = "memoryview[float] | array.array[float]"

_INT = struct.Struct("i")
_HEADER = struct.Struct("i4s")
_STAMPED = struct.Struct("dd")


def used(data: bytes | mmap.mmap) -> int:
    """Return how many bytes of the file are in use, including the header.

    Raises ValueError if it is invalid.
    """
    if len(data) < HEADER_SIZE:
        raise ValueError("it is too short")
    (size,) = _INT.unpack_from(data)
    if size < HEADER_SIZE or size % CELL_SIZE:
        raise ValueError(f"it cannot be {size} bytes long")
    return int(size)


def entries(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[str, int]]:
    """Yield the keys between two offsets in bytes, each with the index of its value, counted in doubles.

    Raises ValueError at an invalid entry.
    """
    while start < end:
        (length,) = _INT.unpack_from(data, start)
        key_at = start + _INT.size
        value_at = key_at + length + CELL_SIZE - (length + _INT.size) % CELL_SIZE
        if length <= 0 or value_at + _STAMPED.size > end:
            raise ValueError(f"the key at {start} cannot be {length} bytes long")
        yield data[key_at : key_at + length].decode(), value_at // CELL_SIZE
        start = value_at + _STAMPED.size


def _entry(key: str) -> bytes:
    encoded = key.encode()
    padding = b" " * (CELL_SIZE - (len(encoded) + _INT.size) % CELL_SIZE)
    return _INT.pack(len(encoded)) + encoded + padding + _STAMPED.pack(0.0, 0.0)


class MemoryFile:
    """Holds values that have no room in a file. Other processes do not see them."""

    def __init__(self) -> None:
        self.cells: Cells = array.array("d")
        self._indices: dict[str, int] = {}

    def index(self, key: str) -> int:
        assert isinstance(self.cells, array.array)
        if key not in self._indices:
            self._indices[key] = len(self.cells)
            self.cells.extend((0.0, 0.0))
        return self._indices[key]


class ValueFile:
    """One process's values of one kind. A value is at ``cells[index]``, its time stamp in the next cell.

    An existing file is used again. A file that cannot be read is replaced. Raises OSError or ValueError if no
    file can be made. Only the mapping's own descriptor stays open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._open()
        except (FileNotFoundError, ValueError):
            _make(path)
            self._open()

    def index(self, key: str) -> int:
        """Return the index of the value of ``key``.

        It never changes. Raises OSError or ValueError without room.
        """
        found = self._indices.get(key)
        return self._add(key) if found is None else found

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            self._file = (found.st_dev, found.st_ino)
            self._map(descriptor, max(_whole_pages(found.st_size), INITIAL_SIZE))
        finally:
            os.close(descriptor)
        self._used = used(self._memory)
        self._indices = dict(entries(self._memory, HEADER_SIZE, self._used))

    def _map(self, descriptor: int, size: int) -> None:
        if size > LARGEST:
            raise OSError(errno.EFBIG, f"it would have more than {LARGEST} bytes")
        _allocate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        self._memory = memory
        # The former mapping is not closed, because a memory view may still use it.
        self.cells: Cells = memoryview(memory).cast("d")

    def _add(self, key: str) -> int:
        entry = _entry(key)
        size = len(self._memory)
        while self._used + len(entry) > size:
            size *= 2
        if size > len(self._memory):
            self._grow(size)
        start, end = self._used, self._used + len(entry)
        self._used = end
        self._memory[start:end] = entry
        self._memory[: _INT.size] = _INT.pack(end)
        self._indices[key] = (end - _STAMPED.size) // CELL_SIZE
        return self._indices[key]

    def _grow(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != self._file:
                raise OSError(errno.ESTALE, "it was replaced by another")
            self._map(descriptor, size)
        finally:
            os.close(descriptor)


def _make(path: Path) -> None:
    """Make the file under another name and rename it. So readers see the whole file or none."""
    unfinished = path.with_suffix(".tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(unfinished, flags, 0o666)  # minus the umask, as prometheus_client does
    try:
        _allocate(descriptor, INITIAL_SIZE)
        # prometheus_client does not use the other 4 bytes. Their random value marks a new file for readers.
        os.pwrite(descriptor, _HEADER.pack(HEADER_SIZE, os.urandom(4)), 0)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.fstat(descriptor).st_size < size:  # macOS
        os.ftruncate(descriptor, size)
