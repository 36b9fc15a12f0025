"""The directory with the files of the app's prometheus_client metrics, and its owner.

Pure: it imports only the standard library. Each server makes a private directory, in memory if the machine
has ``/dev/shm``, and removes it when it exits. The arbiter holds a POSIX lock on a file in it. The kernel
releases this lock when the arbiter dies, whatever the cause, and children do not inherit it. So a free lock
means that the server is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from multicore_server.machine import directories

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FORMER_VARIABLE = "prometheus_multiproc_dir"  # prometheus_client's name for it until 0.10
# The arbiter that USR2 starts inherits the environment. This variable tells it that the directory is not the
# user's.
MARK = "_MULTICORE_PROMETHEUS_DIR"
LOCK = "server.lock"

_log = logging.getLogger("gunicorn.error")
_current: Directory | None = None
_prepared = False


@dataclass(frozen=True, slots=True)
class Directory:
    """``ours``: private to this server.

    ``prefix`` starts the names of its files if others share the directory.
    """

    path: Path
    ours: bool
    prefix: str = ""
    pid: int = field(default_factory=os.getpid)  # the arbiter's

    def identifier(self, row: int) -> str:
        """Return the identifier in the file names of the worker with this row of the scoreboard.

        It is not a bare number: apps call ``mark_process_dead(pid)`` from gunicorn's hooks, which would take
        the number for a pid. It has no ``_``: prometheus_client splits the names of files there.
        """
        return f"{self.prefix}row{row}"

    @property
    def arbiter(self) -> str:
        """The identifier of the arbiter, which has metrics of its own if it preloads the app."""
        return f"{self.prefix}arbiter"

    def chown(self, uid: int, gid: int) -> None:
        """Let workers that drop their privileges write here. The lock file stays the arbiter's.

        Does nothing in a user's own directory.
        """
        if not self.ours:
            return
        try:
            for file in self.path.glob("*.db"):
                os.chown(file, uid, gid)
            os.chown(self.path, uid, gid)
        except OSError as exc:
            _log.warning(
                "%s cannot be given to user %d (%s): the app's metrics stay in memory and are not shown",
                self.path,
                uid,
                exc.strerror,
            )

    def reset(self, identifier: str) -> None:
        """Remove the former owner's gauges that are shown for each process.

        A new process takes the identifier.
        """
        self._remove(identifier, "gauge_all_", "gauge_live")

    def remove_live(self, identifier: str) -> None:
        """Remove the live gauges of a process that has exited, and those of its children."""
        self._remove(identifier, "gauge_live")
        for name in list(self._names()):
            if name.startswith("gauge_live") and f"_{identifier}-" in name:
                self._unlink(name)

    def remove(self) -> None:
        """Remove the directory when the server exits.

        Does nothing in a child or in a user's own directory.
        """
        if self.ours and os.getpid() == self.pid:
            shutil.rmtree(self.path, ignore_errors=True)

    def _remove(self, identifier: str, *prefixes: str) -> None:
        for name in list(self._names()):
            if name.startswith(prefixes) and name.endswith(f"_{identifier}.db"):
                self._unlink(name)

    def _names(self) -> Iterator[str]:
        with contextlib.suppress(OSError):  # the directory is gone: there is nothing to remove
            yield from (entry.name for entry in os.scandir(self.path))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.path / name).unlink()


def prepare(enabled: bool = True) -> None:
    """Choose or make the directory, and set the environment for prometheus_client. Works once in a process.

    Call it before anything imports the app. ``enabled`` is the setting ``app_metrics``. If no directory can
    be used, one log line says so, and the app's metrics stay in each process.
    """
    global _current, _prepared
    if _prepared:
        return
    _prepared = True
    inherited = os.environ.pop(MARK, None)
    if inherited is not None and os.environ.get(VARIABLE) == inherited:
        del os.environ[VARIABLE]
    if enabled:
        named = os.environ.get(VARIABLE) or os.environ.get(FORMER_VARIABLE)
        _current = _user_directory(named) if named else _private_directory()


def current() -> Directory | None:
    """Return the directory in use, or None."""
    return _current


def disable() -> None:
    """Undo `prepare`, because the settings turn the app's metrics off."""
    global _current
    if _current is not None and _current.ours:
        os.environ.pop(VARIABLE, None)
        os.environ.pop(MARK, None)
        _current.remove()
    _current = None


def _user_directory(named: str) -> Directory | None:
    path = Path(named).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "it is not writable")
    except OSError as exc:
        _report_unusable(f"{VARIABLE}={named}: {exc.strerror}; make it writable, or unset it")
        return None
    os.environ[VARIABLE] = str(path)
    return Directory(path, ours=False, prefix=f"{os.getpid()}-")


def _report_unusable(reason: str) -> None:
    _log.error("the app's own metrics are not collected: %s", reason)
    for name in (VARIABLE, FORMER_VARIABLE):  # otherwise prometheus_client would raise in the app
        os.environ.pop(name, None)


def _private_directory() -> Directory | None:
    reasons = []
    for base in _bases():
        try:
            path = _make_locked(base)
        except OSError as exc:
            reasons.append(f"{base}: {exc.strerror}")
            continue
        os.environ[VARIABLE] = os.environ[MARK] = str(path)
        directory = Directory(path, ours=True)
        atexit.register(directory.remove)  # also if the start fails
        _remove_abandoned(base)
        return directory
    _report_unusable(f"no directory can be made ({', '.join(reasons)}); set {VARIABLE} to one")
    return None


def _bases() -> Iterator[Path]:
    yield directories.SHARED_MEMORY
    with contextlib.suppress(FileNotFoundError):
        yield directories.temporary_directory()


def _prefix() -> str:
    return f"multicore-server-{os.geteuid()}-"


def _make_locked(base: Path) -> Path:
    """Make a directory whose lock is held before the directory gets its final name."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{_prefix()}", dir=base))  # has mode 0700
    path = base / hidden.name[1:]
    with contextlib.ExitStack() as undo:
        undo.callback(directories.remove_with_directory, hidden / LOCK)
        lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        undo.callback(os.close, lock)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
        undo.pop_all()  # the file stays open: closing any of its descriptors would release the lock
    return path


def _remove_abandoned(base: Path) -> None:
    """Remove the directories of servers that are gone."""
    for path in base.glob(f"{_prefix()}*"):
        if str(path) != os.environ[MARK] and _is_abandoned(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(lock: Path) -> bool:
    """Return whether this is the lock file of one of our user's servers, and nobody holds the lock.

    In a directory that everybody can write to, a name proves nothing. The owner of the lock file does.
    Workers may own the other files.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
