"""The values of the app's prometheus_client metrics, in files that a scrape reads; never an error in the app.

prometheus_client makes each value with ``values.ValueClass``. Its own class for several processes looks up
its pid at each ``inc()``, keeps its lock as a fork in another thread left it, raises what the file system
raises, and dies of SIGBUS when that is full. Here a value that has no room in a file goes on in memory.

prometheus_client takes 14 ms and 2 MB to import: that is left to the apps that use it.
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
# Shown by process, and set once at import by many an app: workers have them from the arbiter that preloads.
CARRIED_OVER = ("gauge_all", "gauge_liveall")

_log = logging.getLogger("gunicorn.error")


class Book:
    """All values of this process and their files. Use under its lock, after `refresh` if it is stale."""

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
        """After a fork: another thread may have held the lock, and the files are the parent's."""
        self.lock = RLock()  # a signal handler or a destructor may come in between, in the same thread
        self.stale = True

    def become(self, row: int) -> None:
        """This process is the worker of this row."""
        if self.identity is not None:
            self.identity.become(row)
            self.stale = self._carry_over = True

    def close(self) -> None:
        """The metrics are not wanted: values that are there already go on in memory."""
        self.identity = None
        self.stale = True

    def refresh(self) -> None:
        """Move all values to the files of the process that this one has become."""
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
        """The file and the index of a value: in memory, with a complaint, if there is no other way."""
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
        """Say what went wrong, now and then. Not under the lock: a handler of the log may count lines."""
        complaint, self._complaint = self._complaint, ""
        if complaint and time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + COMPLAINT_INTERVAL
            _log.error(
                "the app's metrics have no room in %s; new ones stay in the memory of process %d, unseen",
                complaint,
                os.getpid(),
            )


class Value:
    """A number of a metric; what prometheus_client takes its own ``MutexValue`` for."""

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

    def inc(self, amount: float) -> None:
        if self.book.stale:
            self.book.refresh()
        with self.book.lock:
            self.file.cells[self.index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """``timestamp``: seconds since the epoch, of gauges in the mode mostrecent."""
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
        """The files have no place for one."""

    def get_exemplar(self) -> None:
        return None

    @classmethod
    def close_all_files(cls) -> None:
        """prometheus_client's, for tests: here a file is closed when no value is left in it."""


class _Finder(MetaPathFinder):
    """Gives the module our class when it is imported, if it ever is."""

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
        _use(module)


_finder = _Finder()
_book: Book | None = None


def install(directory: Directory) -> None:
    """From now on the metrics that this process and its children make are kept in ``directory``.

    In the arbiter, before anything imports the app. Metrics that are there already stay as they are.
    """
    global _book
    _book = Book(Identity(directory))
    module = sys.modules.get(MODULE)
    if module is not None:
        _use(module)
    elif _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def become(row: int) -> None:
    """This process has been forked to be the worker of this row of the scoreboard."""
    if _book is not None:
        _book.become(row)


def settle() -> None:
    """This worker has its user and group: metrics that the arbiter has made for it are shown from now on."""
    if _book is not None and _book.values:
        _book.refresh()


def uninstall() -> None:
    """Back to what prometheus_client itself would choose now."""
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


def _use(module: Any) -> None:
    if _book is not None:
        module.ValueClass = type("Value", (Value,), {"book": _book})
