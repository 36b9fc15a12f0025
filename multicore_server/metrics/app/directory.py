"""The directory in which the app's processes keep their prometheus_client metrics, and whose it is.

Pure: the standard library alone. A private one is made for each server, in memory if the machine has
``/dev/shm``, and goes with it. The arbiter holds a POSIX lock in it: the kernel gives that up at the
arbiter's death, however it dies, and children do not inherit it. So where the lock is free, nobody is left.
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

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
FORMER_VARIABLE = "prometheus_multiproc_dir"  # prometheus_client's name for it until 0.10
# Tells the arbiter that USR2 starts, which inherits the environment, that the directory is not the user's.
MARK = "_MULTICORE_PROMETHEUS_DIR"
LOCK = "server.lock"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the directory is made by mkdtemp

_log = logging.getLogger("gunicorn.error")
_current: Directory | None = None
_prepared = False


@dataclass(frozen=True, slots=True)
class Directory:
    """``ours``: private to this server. ``prefix`` sets its files apart in one that others use too."""

    path: Path
    ours: bool
    prefix: str = ""
    pid: int = field(default_factory=os.getpid)  # the arbiter's

    def identifier(self, row: int) -> str:
        """What the files of the worker with this row of the scoreboard are called by.

        Never a bare number: ``mark_process_dead(pid)``, which apps call from gunicorn's hooks, would take it
        for a pid; nor with a ``_`` in it, where prometheus_client splits the names of files.
        """
        return f"{self.prefix}row{row}"

    @property
    def arbiter(self) -> str:
        """The identifier of the arbiter, which has metrics of its own when it preloads the app."""
        return f"{self.prefix}arbiter"

    def give_to(self, uid: int, gid: int) -> None:
        """Let workers that drop their privileges write here; the lock stays the arbiter's. A user's own
        directory is the user's business."""
        if not self.ours:
            return
        try:
            for file in self.path.glob("*.db"):
                os.chown(file, uid, gid)
            os.chown(self.path, uid, gid)
        except OSError as exc:
            _log.warning(
                "%s cannot be given to user %d (%s): the app's metrics stay in memory, unseen",
                self.path,
                uid,
                exc.strerror,
            )

    def begin(self, identifier: str) -> None:
        """A process takes this identifier over: gauges of the former one that are shown by process go."""
        self._remove(identifier, "gauge_all_", "gauge_live")

    def forget_live(self, identifier: str) -> None:
        """The process is dead: its gauges of the live modes go, and those of its children."""
        self._remove(identifier, "gauge_live")
        for name in list(self._names()):
            if name.startswith("gauge_live") and f"_{identifier}-" in name:
                self._unlink(name)

    def remove(self) -> None:
        """At the server's end; a user's own directory stays, and a child that comes here does nothing."""
        if self.ours and os.getpid() == self.pid:
            shutil.rmtree(self.path, ignore_errors=True)

    def _remove(self, identifier: str, *prefixes: str) -> None:
        for name in list(self._names()):
            if name.startswith(prefixes) and name.endswith(f"_{identifier}.db"):
                self._unlink(name)

    def _names(self) -> Iterator[str]:
        with contextlib.suppress(OSError):  # gone: there is nothing to remove
            yield from (entry.name for entry in os.scandir(self.path))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.path / name).unlink()


def prepare(enabled: bool = True) -> None:
    """Choose or make the directory and set the environment that prometheus_client reads, once in a process.

    Before anything imports the app. ``enabled``: as the setting ``app_metrics``. If there is none to be had,
    a line in the log says so, and the app's metrics are plain ones.
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
        _current = _of_the_user(named) if named else _private()


def current() -> Directory | None:
    """The directory in use; None if there is none."""
    return _current


def withdraw() -> None:
    """The app's metrics are not wanted after all: undo what `prepare` did."""
    global _current
    if _current is not None and _current.ours:
        os.environ.pop(VARIABLE, None)
        os.environ.pop(MARK, None)
        _current.remove()
    _current = None


def _of_the_user(named: str) -> Directory | None:
    path = Path(named).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(None, "it is not writable")
    except OSError as exc:
        _give_up(f"{VARIABLE}={named}: {exc.strerror}; make it writable, or unset it")
        return None
    os.environ[VARIABLE] = str(path)
    return Directory(path, ours=False, prefix=f"{os.getpid()}-")


def _give_up(reason: str) -> None:
    _log.error("the app's own metrics are not collected: %s", reason)
    for name in (VARIABLE, FORMER_VARIABLE):  # or prometheus_client would raise in the app
        os.environ.pop(name, None)


def _private() -> Directory | None:
    reasons = []
    for base in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        try:
            path = _make(base)
        except OSError as exc:
            reasons.append(f"{base}: {exc.strerror}")
            continue
        os.environ[VARIABLE] = os.environ[MARK] = str(path)
        directory = Directory(path, ours=True)
        atexit.register(directory.remove)  # also when the start is given up
        _sweep(base)
        return directory
    _give_up(f"no directory can be made ({', '.join(reasons)}); set {VARIABLE} to one")
    return None


def _prefix() -> str:
    return f"multicore-server-{os.geteuid()}-"


def _make(base: Path) -> Path:
    """Make a directory that nobody ever sees without its lock held."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{_prefix()}", dir=base))  # of mode 0700
    path = base / hidden.name[1:]
    try:
        # Stays open for good: closing any descriptor of the file would give the lock up.
        lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
    except OSError:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return path


def _sweep(base: Path) -> None:
    """Remove the directories of servers that are gone."""
    for path in base.glob(f"{_prefix()}*"):
        if str(path) != os.environ[MARK] and _abandoned(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)


def _abandoned(lock: Path) -> bool:
    """Whether this is the lock of one of our user's servers, and nobody holds it. Names in a directory that
    all may write to prove nothing: the lock's owner does, workers may own the rest."""
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
