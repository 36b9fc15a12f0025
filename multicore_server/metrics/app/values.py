"""Stores the values of the app's prometheus_client metrics in files, and never raises in the app.

prometheus_client makes each value with ``values.ValueClass``. Its own class for several processes reads the
pid at each ``inc()``. Its lock can stay locked after a fork in another thread. It passes exceptions of the
file system to the app, and a full file system kills the process by SIGBUS. Here a value without room in a
file stays in memory.

The import of prometheus_client takes 14 ms and 2 MB. So this module imports it only if the app does.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any
from weakref import WeakSet

from multicore_server.metrics.app.directory import Directory
from multicore_server.metrics.app.files import MemoryFile, ValueFile
from multicore_server.metrics.app.identity import Identity

MODULE = "prometheus_client.values"
COMPLAINT_INTERVAL = 60.0  # seconds
# Gauges that are shown for each process. Many apps set them once, at import. If the arbiter preloads the app,
# the workers take over its values.
CARRIED_OVER = ("gauge_all", "gauge_liveall")

_log = logging.getLogger("gunicorn.error")


class Book:
    """All values of this process and their files.

    Hold ``lock`` to use it. If it is ``stale``, `refresh` it first.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity: Identity | None = identity
        self.values: WeakSet[Value] = WeakSet()
        self._files: dict[str, ValueFile] = {}
        self._memory: dict[str, MemoryFile] = {}
        self._complaint = ""
        self._quiet_until = 0.0
        self._carry_over = False
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        """Make a new lock after a fork, because another thread may have held it.

        The files are the parent's.
        """
        self.since = time.time()  # seconds since the epoch
        self.lock = RLock()  # reentrant: a signal handler or a destructor can interrupt the same thread
        self.stale = True

    def take_row(self, row: int) -> None:
        """Make this process the owner of a worker's row."""
        if self.identity is not None:
            self.identity.take_row(row)
            self.stale = self._carry_over = True

    def close(self) -> None:
        """Stop writing to files. Existing values stay in memory."""
        self.identity = None
        self.stale = True

    def refresh(self) -> None:
        """Move all values to this process's own files, after a fork or after `take_row`."""
        with self.lock:
            if not self.stale:
                return
            self.stale = False
            self._files = {}
            self._memory = {}
            for value in list(self.values):
                before = value.file.cells[value.index] if self._is_carried(value) else None
                value.place()
                if before is not None:
                    value.file.cells[value.index] = before
            self._carry_over = False
        self.complain()

    def _is_carried(self, value: Value) -> bool:
        return self._carry_over and value.kind in CARRIED_OVER

    def find(self, kind: str, key: str) -> tuple[ValueFile | MemoryFile, int]:
        """Return the file and the index of a value. If no file has room, use memory and keep a complaint."""
        if self.identity is not None:
            try:
                if kind not in self._files:
                    self._files[kind] = ValueFile(self.identity.path(kind))
                return self._files[kind], self._files[kind].index(key)
            except (OSError, ValueError) as exc:
                self._complaint = f"{self.identity.path(kind)}: {getattr(exc, 'strerror', None) or exc}"
        memory = self._memory.setdefault(kind, MemoryFile())
        return memory, memory.index(key)

    def complain(self) -> None:
        """Log what went wrong, at most once a minute.

        Call it without the lock: a log handler may use a metric, for example to count lines.
        """
        complaint, self._complaint = self._complaint, ""
        if complaint and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + COMPLAINT_INTERVAL
            _log.error(
                "the app's metrics have no room in %s; new ones stay in the memory of process %d, not shown",
                complaint,
                os.getpid(),
            )


class Value:
    """One number of a metric. It replaces prometheus_client's ``MutexValue``."""

    _multiprocess = True
    book: Book

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **kwargs: Any,
    ) -> None:
        from prometheus_client.mmap_dict import mmap_key

        self.kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self.key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        if self.book.stale:
            self.book.refresh()
        with self.book.lock:
            self.place()
            self.book.values.add(self)
        self.book.complain()

    def place(self) -> None:
        self.file, self.index = self.book.find(self.kind, self.key)
        # A file also has what the row's former owners made. The time stamp, which the format uses for
        # mostrecent gauges alone, says when the last process that made the value began.
        if not self.kind.endswith("mostrecent"):
            self.file.cells[self.index + 1] = self.book.since

    def inc(self, amount: float) -> None:
        if self.book.stale:
            self.book.refresh()
        with self.book.lock:
            self.file.cells[self.index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set the value. ``timestamp`` is in seconds since the epoch, for gauges with the mode mostrecent."""
        if self.book.stale:
            self.book.refresh()
        with self.book.lock:
            self.file.cells[self.index] = value
            if timestamp:
                self.file.cells[self.index + 1] = timestamp

    def get(self) -> float:
        if self.book.stale:
            self.book.refresh()
        with self.book.lock:
            return self.file.cells[self.index]

    def set_exemplar(self, exemplar: Any) -> None:
        """Do nothing: the files cannot store exemplars."""

    def get_exemplar(self) -> None:
        return None

    @classmethod
    def close_all_files(cls) -> None:
        """Do nothing. In prometheus_client this is for tests; here a file is closed with its last value."""


class _Finder(MetaPathFinder):
    """Sets our class in prometheus_client's module when the app imports it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _set_value_class(module)


_finder = _Finder()
_book: Book | None = None


def install(directory: Directory) -> None:
    """Store the metrics that this process and its children make from now on in ``directory``.

    The arbiter calls it before anything imports the app. Existing metrics do not change.
    """
    global _book
    _book = Book(Identity(directory))
    module = sys.modules.get(MODULE)
    if module is not None:
        _set_value_class(module)
    elif _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def take_row(row: int) -> None:
    """Make this forked process the owner of a worker's row of the scoreboard."""
    if _book is not None:
        _book.take_row(row)


def open_files() -> None:
    """Open this worker's files for metrics that the arbiter has made.

    Call it after the change of user and group.
    """
    if _book is not None and _book.values:
        _book.refresh()


def uninstall() -> None:
    """Undo `install`: prometheus_client uses its own value class again."""
    global _book
    if _book is None:
        return
    _book.close()
    _book = None
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    module: Any = sys.modules.get(MODULE)
    if module is not None:
        module.ValueClass = module.get_value_class()


def _set_value_class(module: Any) -> None:
    if _book is not None:
        module.ValueClass = type("Value", (Value,), {"book": _book})
