"""Rotates the log files by their size, without losing a line.

FILE becomes FILE.1, FILE.1 becomes FILE.2, and every process opens FILE again. Until a process has done so,
its lines go to FILE.1. Processes also reopen a file that another program has moved (logrotate, the other
arbiter of USR2).
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multicore_server.machine.log_files import shift
from multicore_server.settings.gunicorn import log_files
from multicore_server.settings.table import Settings
from multicore_server.worker import loggers

SOON, LATE = 0.1, 1.0  # seconds between two looks: the sooner, the faster a file grows
QUIET = 60.0  # seconds until a file that cannot be rotated is tried again


@dataclass
class _LogFile:
    path: Path
    size: int = 0
    seen: float = 0.0  # when it had this size


class LogRotation:
    """``reopen`` lets all processes open their logs anew; ``may_rotate`` says whether this arbiter is the one
    that rotates. ``due`` is when `tick` is to be called at the latest."""

    def __init__(self, log: Any, reopen: Callable[[], None], may_rotate: Callable[[], bool]) -> None:
        self.due: float | None = None
        self._log = log
        self._reopen = reopen
        self._may_rotate = may_rotate
        self._files: list[_LogFile] = []
        self._limit = self._keep = 0

    def configure(self, settings: Settings, cfg: Any) -> None:
        """Obey this configuration from now on."""
        self._limit, self._keep = settings.log_max_size or 0, settings.log_keep
        named = sorted(set(log_files(cfg).values())) if self._limit else ()
        self._files = [_LogFile(Path(path).absolute()) for path in named]
        self.due = 0.0 if self._files else None

    def tick(self, now: float) -> None:
        if self.due is None or now < self.due:
            return
        self.due = now + LATE
        moved = loggers.is_moved(self._log)
        if self._may_rotate():
            for file in self._files:
                moved |= self._rotate_if_full(file, now)
        if moved:
            self._reopen()

    def _rotate_if_full(self, file: _LogFile, now: float) -> bool:
        try:
            found = file.path.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):  # /dev/stdout, a pipe, a link
            return False
        rate = (found.st_size - file.size) / (now - file.seen)
        is_full = found.st_size >= self._limit and self._shift(file.path, now)
        file.size, file.seen = 0 if is_full else found.st_size, now
        if rate > 0 and file.size < self._limit:
            self.due = min(self.due or 0.0, now + max(SOON, (self._limit - file.size) / rate))
        return is_full

    def _shift(self, path: Path, now: float) -> bool:
        try:
            shift(path, self._keep)
        except OSError as exc:
            self.due = now + QUIET
            self._log.error("%s cannot be rotated, and grows: %s", path, exc)
            return False
        return True
