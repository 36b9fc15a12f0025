"""Shows the stacks of a process that does not answer, by a signal whose handler does not need the GIL.

The arbiter installs the handler and makes the file before its first fork, so every process of the server has
both. The handler is in C. There is one file in memory, to which all processes append. A reader locks it while
it reads. Everybody who may send the arbiter a signal may read it, through /proc; nobody else can.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import re
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

# systemd (1) gives a meaning to the real-time signals +0 to +6, and from +13 on.
SIGNAL = getattr(signal, "SIGRTMIN", 0) + 9
NAME = "multicore-stacks"
LARGEST = 1024 * 1024  # bytes that are read
QUIET = 0.1  # seconds without a new line: it is complete
LOOK = 0.01  # seconds between two looks
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_THREAD = re.compile(r"(?:Current t|T)hread (0x[0-9a-f]+)(?: \[(.*)\])?.*\(most recent call first\):")


class NoStackError(Exception):
    """The process shows no stack. One line that says why."""


class StackDumps:
    """The arbiter's, for all of its children too. Raises OSError, also where the system has no such file or
    signal."""

    def __init__(self) -> None:
        if not hasattr(os, "memfd_create") or not hasattr(signal, "SIGRTMIN"):
            raise OSError("this system has no files in memory, or no real-time signals")
        self.descriptor = os.memfd_create(NAME)
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        faulthandler.register(SIGNAL, self.descriptor)
        self.close = weakref.finalize(self, _close, self.descriptor)


def _close(descriptor: int) -> None:
    faulthandler.unregister(SIGNAL)
    os.close(descriptor)


def dump(pid: int, patience: float) -> dict[str, list[str]]:
    """By thread: the lines of its stack, the innermost last. ``pid`` is of any process of a server; it has so
    many seconds. Raises NoStackError."""
    deadline = time.monotonic() + patience
    try:
        with _process(pid) as process, _locked(pid, deadline) as file:
            _check(pid)
            os.ftruncate(file, 0)
            signal.pidfd_send_signal(process, SIGNAL)
            return parse(_written(file, deadline))
    except PermissionError:
        raise NoStackError("it belongs to another user") from None
    except (FileNotFoundError, ProcessLookupError):
        raise NoStackError("it has exited") from None
    except OSError as exc:
        raise NoStackError(f"it cannot be inspected: {exc.strerror or exc}") from None


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor of the process: a number may belong to another one meanwhile."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(pid: int, deadline: float) -> Iterator[int]:
    """The file, and nobody else at it."""
    file = os.open(_path(pid), os.O_RDWR | os.O_CLOEXEC)
    try:
        while not _lock(file):
            _wait(deadline, "another process is asking for stacks")
        yield file
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _path(pid: int) -> Path:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(path.readlink()).startswith(f"/memfd:{NAME}"):
                return path
    raise NoStackError("it has no file for its stacks")


def _check(pid: int) -> None:
    """The signal would end a process that does not handle it; one that is stopped takes it later."""
    said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    if said["State"].startswith(("T", "t", "Z")):
        raise NoStackError(f"it is not running (state {said['State']})")
    if not int(said["SigCgt"], 16) >> (SIGNAL - 1) & 1:
        raise NoStackError("it no longer handles the signal for its stacks")


def _written(file: int, deadline: float) -> str:
    """All that it has to say: it has no mark at its end."""
    size, since = 0, time.monotonic()
    while size == 0 or time.monotonic() - since < QUIET:
        _wait(deadline, "it shows no stack")
        if (now := os.fstat(file).st_size) != size:
            size, since = now, time.monotonic()
    return os.pread(file, min(size, LARGEST), 0).decode(errors="replace")


def _wait(deadline: float, why: str) -> None:
    if time.monotonic() >= deadline:
        raise NoStackError(f"{why} (for as long as --timeout says)")
    time.sleep(LOOK)


def parse(text: str) -> dict[str, list[str]]:
    """What `faulthandler` writes."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            number, name = thread.groups()
            lines = found.setdefault(name or number, [])
        elif frame := _FRAME.match(line):
            lines.insert(0, "{}:{} in {}".format(*frame.groups()))
        elif line.strip() == "...":
            lines.insert(0, "...")
    return found
