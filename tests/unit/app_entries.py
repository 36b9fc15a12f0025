"""Values of the app's metrics, written into files by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from multicore_server.metrics.app.files import ValueFile

BOUNDS = ("0.005", "1.0", "2.5", "1e+06", "+Inf")


class Entry(NamedTuple):
    """A value in a file of prometheus_client's, by the file's name without the identifier."""

    file: str
    family: str
    suffix: str
    labels: dict[str, str]
    value: float
    stamp: float = 0.0
    help: str = "Help."

    @property
    def key(self) -> str:
        name = self.family + self.suffix
        return mmap_key(self.family, name, list(self.labels), list(self.labels.values()), self.help)


def write(directory: Path, identifier: str, entries: Iterable[Entry]) -> None:
    for entry in entries:
        file = ValueFile(directory / f"{entry.file}_{identifier}.db")
        index = file.index(entry.key)
        file.cells[index] = entry.value
        file.cells[index + 1] = entry.stamp


def write_stock(directory: Path, identifier: str, entries: Iterable[Entry]) -> None:
    for entry in entries:
        file: Any = MmapedDict(str(directory / f"{entry.file}_{identifier}.db"))  # type: ignore[no-untyped-call]
        file.write_value(entry.key, entry.value, entry.stamp)
        file.close()


def counter(value: float, name: str = "hits", **given: str) -> Entry:
    return Entry("counter", name, "_total", given, value)


def gauge(value: float, mode: str = "all", name: str = "size", stamp: float = 0.0, **given: str) -> Entry:
    return Entry(f"gauge_{mode}", name, "", given, value, stamp)
