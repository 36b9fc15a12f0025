"""The files of the app's metrics as a scrape reads them: keys are parsed once, then only numbers are read.

Pure: the standard library alone. By ``read()``, not by mapping: a file that somebody shortens is an error
then, not a SIGBUS. What cannot be read is left out, said once, and counted; a file that could be read before
keeps its last values, so that no sum falls.
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

# Cells behind the file's own: what a key that the file does not have counts as.
ZERO, INFINITY, MINUS_INFINITY = -3, -2, -1
_FILL = struct.pack("3d", 0.0, float("inf"), float("-inf"))
_VALUE_SIZE = 2 * CELL_SIZE  # bytes: with its time stamp

_versions = count(1)
_log = logging.getLogger("gunicorn.error")


@dataclass(slots=True)
class Part:
    """What a file has of one family: in ``layers``, at which of its cells each series' value is.

    Each series is in a layer once. One that is in the file twice, under two HELP texts, is in two layers.
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
    """One file, as it was when it was last read; its ``parts`` by family.

    ``mode`` is a gauge's multiprocess_mode, or empty. ``version`` is another one when there are other keys.
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
        """Raises OSError or ValueError, and stays as it was."""
        if not self._known:
            raise ValueError("prometheus_client calls no file so")
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
        """Whether this is the file that was parsed before, and not another with its name and number."""
        return edition == self._edition and all(data[place] == text for place, text in self._marks)

    def _mark(self, data: bytes, start: int, values: list[int]) -> None:
        """Remember how the first and the last of the keys that begin at ``start`` read."""
        starts = [start, *(value + _VALUE_SIZE for value in values)]
        places = [
            slice(*place) for place in list(zip(starts, values, strict=False))[:: max(1, len(values) - 1)]
        ]
        self._marks = [(place, data[place]) for place in places]


def _contents(path: Path) -> tuple[bytes, object]:
    """What is used of the file, and something that tells it from another of this name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # never wait for a FIFO
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        head = os.pread(descriptor, HEADER_SIZE, 0)
        size = used(head)
        if size > min(found.st_size, LARGEST):
            raise ValueError(f"it cannot have {size} bytes in use")
        data = os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)
    if len(data) < size:
        raise ValueError("it was cut short")
    # File systems use the numbers of removed files again; app_files writes something random after the size.
    return data, (found.st_dev, found.st_ino, head[4:])


class Sources:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sources: dict[str, Source] = {}
        self._reported: set[str] = set()
        self.left_out = 0  # files, at the last look

    def look(self) -> list[Source]:
        """Read everything that there is now."""
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
        except OSError as exc:  # no descriptors left, for one: go by what was there
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
                "%s of the app's metrics cannot be read (%s): /metrics goes on without it", name, reason
            )
