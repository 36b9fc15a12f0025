"""Reads a log file and its rotated files: the last lines, then new lines as they come."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from multicore_server.machine.log_files import numbered

BLOCK = 2**16
OPEN = 2  # files that are followed from the first: processes go on writing to FILE.1 for a while


class _File:
    """One of the files, by whatever name. ``at`` is how far it was read."""

    def __init__(self, file: BinaryIO, *, at_end: bool) -> None:
        self._file = file
        found = os.fstat(file.fileno())
        self.key = (found.st_dev, found.st_ino)
        self.at = found.st_size if at_end else 0

    def last(self, number: int) -> list[bytes]:
        """The last lines up to ``at``; an unfinished one is left to `new`."""
        start, blocks, ends = self.at, [b""], 0
        while start and ends <= number:
            size = min(BLOCK, start)
            start -= size
            self._file.seek(start)
            blocks.append(self._file.read(size))
            ends += blocks[-1].count(b"\n")
        *lines, unfinished = b"".join(reversed(blocks)).split(b"\n")
        self.at -= len(unfinished)
        first = 0 if start == 0 else 1  # read in part
        return [line + b"\n" for line in lines[max(first, len(lines) - number) :]]

    def new(self, *, unfinished: bool = False) -> Iterator[bytes]:
        """The lines from ``at`` on."""
        if os.fstat(self._file.fileno()).st_size < self.at:  # it was emptied in place
            self.at = 0
        self._file.seek(self.at)
        for line in self._file:
            if line.endswith(b"\n") or unfinished:
                self.at += len(line)
                yield line

    def is_removed(self) -> bool:
        return os.fstat(self._file.fileno()).st_nlink == 0

    def close(self) -> None:
        self._file.close()


class LogReader:
    """Of the log at ``path``. Files are followed by what they are: a rotation gives them other names.

    Raises OSError for a file that may not be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[_File] = []  # oldest first
        self._older = 0  # the number of the next file that `last` opens
        for _ in range(OPEN):
            self._open_older()

    @property
    def exists(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._files)

    def last(self, number: int) -> list[bytes]:
        """The last lines that there were at first."""
        lines: list[bytes] = []
        for file in reversed(self._files):
            lines = file.last(number - len(lines)) + lines
        while len(lines) < number and (older := self._open_older()):
            lines = older.last(number - len(lines)) + lines
        return lines

    def new(self, *, unfinished: bool = False) -> Iterator[bytes]:
        """The lines that have come since; ``unfinished``: and the beginning of the next."""
        self._open_newer()
        for file in list(self._files):
            yield from file.new(unfinished=unfinished)
            if file.is_removed():
                self._files.remove(file)
                file.close()

    def close(self) -> None:
        for file in self._files:
            file.close()

    # From the newest on: a file that is renamed meanwhile is met again, under a higher number, and none is
    # missed.

    def _open_older(self) -> _File | None:
        """The next older file, if there is one."""
        while True:
            file = self._open(self._older, at_end=True)
            self._older += 1
            if file is not None and self._knows(file):
                file.close()
                continue
            if file is not None:
                self._files.insert(0, file)
            return file

    def _open_newer(self) -> None:
        place, number = len(self._files), 0
        while file := self._open(number, at_end=False):
            if self._knows(file):
                file.close()
                return
            self._files.insert(place, file)
            number += 1

    def _knows(self, file: _File) -> bool:
        return any(it.key == file.key for it in self._files)

    def _open(self, number: int, *, at_end: bool) -> _File | None:
        try:
            file = open(numbered(self._path, number), "rb", opener=_without_waiting)  # noqa: SIM115
        except FileNotFoundError:
            return None
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return _File(file, at_end=at_end)
        file.close()
        return None


def _without_waiting(path: str, flags: int) -> int:
    """A pipe would wait for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
