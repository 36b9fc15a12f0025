"""Reads the metrics files for a scrape. Keys are parsed once, then only numbers are read.

Pure: it imports only the standard library. The files are read by ``read()`` and not mapped. So if somebody
truncates a file, the result is an error and not a SIGBUS. A file that cannot be read is left out, counted,
and logged once. If it could be read before, its last values stay, so that no sum falls.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import cast

from multicore_server.metrics.app.files import CELL_SIZE, HEADER_SIZE, LARGEST, entries, used
from multicore_server.metrics.app.keys import KINDS, MODES, Series, read_key
from multicore_server.metrics.family import Kind

# Indices of cells after the file's own cells. They hold the value of a key that the file does not have.
ZERO, INFINITY, MINUS_INFINITY = -3, -2, -1
_FILL = struct.pack("3d", 0.0, float("inf"), float("-inf"))
_VALUE_SIZE = 2 * CELL_SIZE  # bytes, including the time stamp

_versions = count(1)
_log = logging.getLogger("gunicorn.error")


@dataclass(slots=True)
class Part:
    """A file's part of one family. ``layers`` map each series to the index of its cell.

    Each series is in a layer once. If the file has a series twice, with two HELP texts, it is in two layers.
    """

    help: str
    layers: list[dict[Series, int]] = field(default_factory=lambda: [{}])

    def add(self, series: Series, index: int) -> None:
        for layer in self.layers:
            if series not in layer:
                layer[series] = index
                return
        self.layers.append({series: index})


class Source:
    """One file, as it was at the last read. ``parts`` are its parts by family.

    ``mode`` is a gauge's multiprocess_mode, or empty. ``version`` changes when the keys change.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        parts = name.removesuffix(".db").split("_")
        self.kind = cast("Kind", parts[0])
        self.mode = parts[1] if self.kind == "gauge" else ""
        self.identifier = parts[-1]
        gauge = self.kind == "gauge"
        self._known = self.kind in KINDS and len(parts) == 2 + gauge and (not gauge or self.mode in MODES)
        self.parts: dict[str, Part] = {}
        self.cells: memoryview[float] = memoryview(_FILL).cast("d")
        self.version = 0
        self._edition: object = None
        self._parsed = HEADER_SIZE  # bytes
        self._marks: list[tuple[slice, bytes]] = []

    def read(self, directory: Path) -> None:
        """Read the file. If it raises OSError or ValueError, the values of the last read stay."""
        if not self._known:
            raise ValueError("prometheus_client does not use this name")
        data, edition = _contents(directory / self.name)
        same = self._is_same(data, edition)
        start = self._parsed if same else HEADER_SIZE
        if not same or start < len(data):
            added = [(read_key(self.kind, text), index) for text, index in entries(data, start, len(data))]
            self.parts = self.parts if same else {}
            for key, index in added:
                self.parts.setdefault(key.family, Part(key.help)).add(key.series, index)
            self._edition, self._parsed, self.version = edition, len(data), next(_versions)
            self._mark(data, start, [index * CELL_SIZE for _, index in added])
        self.cells = memoryview(data + _FILL).cast("d")

    def _is_same(self, data: bytes, edition: object) -> bool:
        """Return whether this is the file that was parsed before. Its name and inode number can be reused."""
        return edition == self._edition and all(data[place] == text for place, text in self._marks)

    def _mark(self, data: bytes, start: int, values: list[int]) -> None:
        """Remember the text of the first and the last key in the entries from ``start`` on."""
        starts = [start, *(value + _VALUE_SIZE for value in values)]
        places = [
            slice(*place) for place in list(zip(starts, values, strict=False))[:: max(1, len(values) - 1)]
        ]
        self._marks = [(place, data[place]) for place in places]


def _contents(path: Path) -> tuple[bytes, object]:
    """Return the part of the file that is in use, and a value that identifies the file behind the name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # do not wait for a FIFO
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a file")
        head = os.pread(descriptor, HEADER_SIZE, 0)
        size = used(head)
        if size > min(found.st_size, LARGEST):
            raise ValueError(f"it cannot have {size} bytes in use")
        data = os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)
    if len(data) < size:
        raise ValueError("it was truncated")
    # File systems reuse inode numbers. So files.py writes random bytes after the size, and they are compared
    # too.
    return data, (found.st_dev, found.st_ino, head[4:])


class Sources:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sources: dict[str, Source] = {}
        self._reported: set[str] = set()
        self.left_out = 0  # files, at the last read

    def read(self) -> list[Source]:
        """Read all files that exist now, and return those with metrics."""
        self.left_out = 0
        names = self._names()
        self._sources = {name: self._sources.get(name) or Source(name) for name in names}
        self._reported &= {str(self._directory), *names}
        for name in names:
            self._read(self._sources[name])
        return [source for _, source in sorted(self._sources.items()) if source.parts]

    def _names(self) -> list[str]:
        try:
            return [it.name for it in os.scandir(self._directory) if it.name.endswith(".db")]
        except FileNotFoundError:
            self._report(str(self._directory), "it is gone")
            return []
        except OSError as exc:  # for example, no descriptors are left: use the files of the last read
            self._report(str(self._directory), exc.strerror)
            return list(self._sources)

    def _read(self, source: Source) -> None:
        try:
            source.read(self._directory)
        except FileNotFoundError:  # removed since the directory was listed
            del self._sources[source.name]
        except (OSError, ValueError) as exc:
            self.left_out += 1
            self._report(source.name, getattr(exc, "strerror", None) or str(exc))

    def _report(self, name: str, reason: str | None) -> None:
        if name not in self._reported:
            self._reported.add(name)
            _log.warning(
                "%s of the app's metrics cannot be read (%s): /metrics is served without it", name, reason
            )
