"""Sets up gunicorn's logger again in a reload, and reopens its files on USR1."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

from gunicorn import glogging

from multicore_server.fleet.events import Event
from multicore_server.settings.gunicorn import log_files
from multicore_server.worker.loggers import handlers_of

_SILENT = logging.Logger("silent", logging.CRITICAL + 1)
QUIET = 60.0  # seconds between two lines about a log that cannot be written


def set_up_log(log: Any, cfg: Any) -> None:
    """Let gunicorn's logger follow this configuration (of itself it keeps that of the start, before 25.1)."""
    log.cfg = cfg
    log.setup(cfg)


def chown_what_is_opened() -> None:
    """gunicorn's logger gives each log file that it opens to the workers' user, at the start and at HUP: by
    its path, through links, whosever file that is. From now on it does so as `reopen_log`. Idempotent."""
    glogging.os = _OsOfLogger()


class _OsOfLogger:
    """The module ``os``, as gunicorn's logger sees it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def chown(path: str, uid: int, gid: int) -> None:
        _give(path, uid, gid, _SILENT)  # /dev/stderr is a link, and right


def adopt(log: Any, cfg: Any) -> None:
    """What gunicorn's logger is to do from now on, besides what it does of itself."""
    say_failures_once(log)
    if cfg.capture_output:
        print_whole_lines()


def say_failures_once(log: Any) -> None:
    """A line that cannot be written (the disk is full) costs one line on stderr a minute. As it comes,
    logging writes a traceback for each."""
    for handler in handlers_of(log):
        handler.handleError = _FailureOf(handler)  # type: ignore[method-assign]


class _FailureOf:
    """Takes the place of `logging.Handler.handleError`."""

    def __init__(self, handler: logging.Handler) -> None:
        self._name = getattr(handler, "baseFilename", type(handler).__name__)
        self._quiet_until = 0.0

    def __call__(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET
            with contextlib.suppress(Exception):  # stderr may be as full, or closed
                print(f"{self._name}: log lines are lost: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


def fields_of(event: Event) -> dict[str, Any]:
    """What the record of an event has beside its text: the line is about a worker, and no worker's own.

    No field is named ``event``: structlog has the text there.
    """
    fields = {"kind": event.kind, "reason": event.reason, "worker_pid": event.pid}
    if event.instance is not None:
        fields |= {"instance": event.instance, "generation": event.generation}
    return {name: value for name, value in fields.items() if value is not None}


def print_whole_lines() -> None:
    """Let what is printed leave at the end of each line, in one write: a file is for all processes, and of
    itself Python keeps 8 KiB back, or (PYTHONUNBUFFERED) writes a line in pieces."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def files(cfg: Any) -> list[str]:
    """The files that the server's processes write to: its logs, and what they print where that is a file."""
    found = [*log_files(cfg).values()]
    if not cfg.capture_output:  # else it goes to the error log
        found += filter(None, map(_file_behind, (1, 2)))
    return sorted({str(Path(path).absolute()) for path in found})


def _file_behind(descriptor: int) -> str:
    with contextlib.suppress(OSError):  # it is closed; there is no /proc
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    return ""


def reopen_log(log: Any, cfg: Any) -> None:
    """Open the log files again, and leave files that workers of another user can reopen too.

    If they cannot be opened (their directory is gone, the disk is full), a line says so and the log goes on
    where it was.
    """
    try:
        log.reopen_files()
    except OSError as exc:
        log.error("cannot reopen the log files: %s", exc)
    for path in log_files(cfg).values():
        _give(path, cfg.uid, cfg.gid, log)


def _give(path: str, uid: int, gid: int, log: Any) -> None:
    """Give a log file that is ours to the workers' user.

    Whoever may write the directory could put a link to any file there, or another user's file: what is
    opened without following a link is looked at, and only that is given away.
    """
    if uid == os.geteuid() and gid == os.getegid():
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        log.warning("the owner of %s is not changed: %s", path, exc.strerror)
        return
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid in (os.geteuid(), uid):
            os.fchown(descriptor, uid, gid)
    except OSError as exc:
        log.warning("cannot change the owner of %s to user %s: %s", path, uid, exc.strerror)
    finally:
        os.close(descriptor)
