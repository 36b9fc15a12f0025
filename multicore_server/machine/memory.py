"""Measures the memory of a process, and of this container or machine, in bytes.

On Linux the values come from /proc; see proc(5) and the kernel's Documentation/filesystems/proc.rst. There
`rss` takes microseconds and `uss` takes milliseconds. Elsewhere the values come from psutil.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from multicore_server.machine.cgroup import memory_limit
from multicore_server.machine.process import HAS_PROC

_PRIVATE = re.compile(rb"^Private_(?:Clean|Dirty|Hugetlb): *([0-9]+) kB$", re.MULTILINE)
_TOTAL = re.compile(rb"^MemTotal: *([0-9]+) kB$", re.MULTILINE)


class Sizes(NamedTuple):
    """In bytes."""

    virtual: int
    resident: int


def rss(pid: int, proc: Path = Path("/proc")) -> int:
    """Return the resident memory of a process in bytes, including pages that it shares with others.

    Raises the same exceptions as `sizes`.
    """
    return sizes(pid, proc).resident


def sizes(pid: int, proc: Path = Path("/proc")) -> Sizes:
    """Return the address space of a process, and how much of it is in memory.

    The values are the first two fields of /proc/PID/statm, in pages. Raises ProcessLookupError if the process
    has exited (also for a zombie, which has no memory left), and PermissionError if access is denied.
    """
    if not HAS_PROC:
        return _sizes_by_psutil(pid)
    try:
        size, resident = _read(f"{proc}/{pid}/statm").split()[:2]
    except FileNotFoundError:  # read() itself fails with ESRCH, which already is ProcessLookupError
        raise ProcessLookupError(f"process {pid} has exited") from None
    # Do not test `resident`: proc(5) calls it inaccurate, because the kernel counts in per-CPU batches.
    if not int(size):
        raise ProcessLookupError(f"process {pid} has exited")
    page = os.sysconf("SC_PAGE_SIZE")
    return Sizes(int(size) * page, int(resident) * page)


def _read(path: str) -> bytes:
    """A short file, at a fifth of the price of `Path.read_bytes`: the arbiter reads one for each worker."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def uss(pid: int | None = None, proc: Path = Path("/proc")) -> int:
    """Return the unique memory of a process in bytes: the memory that its exit would free.

    ``pid`` None means this process. The value is the sum of Private_Clean, Private_Dirty and
    Private_Hugetlb in /proc/PID/smaps_rollup, or in smaps before Linux 4.14. A kernel without both files
    (CONFIG_PROC_PAGE_MONITOR) gives only RSS, which is never less. Raises the same exceptions as `rss`.
    """
    pid = os.getpid() if pid is None else pid
    if not HAS_PROC:
        return _uss_by_psutil(pid)
    text = _mappings(proc / str(pid))
    if text is None:
        return rss(pid, proc)
    if not text:
        raise ProcessLookupError(f"process {pid} has exited")
    return 1024 * sum(map(int, _PRIVATE.findall(text)))


def available(proc: Path = Path("/proc")) -> int:
    """Return the total memory of this container or machine in bytes, used and free.

    It is the smaller one of `cgroup.memory_limit` and MemTotal in /proc/meminfo.
    """
    limit, machine = memory_limit(proc), _machine(proc)
    return machine if limit is None else min(limit, machine)


def _machine(proc: Path) -> int:
    if HAS_PROC:
        with suppress(OSError):  # systemd's ProcSubset=pid hides it
            if total := _TOTAL.search((proc / "meminfo").read_bytes()):
                return int(total[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _mappings(process: Path) -> bytes | None:
    for name in ("smaps_rollup", "smaps"):
        with suppress(FileNotFoundError):
            return (process / name).read_bytes()
    return None


# psutil is imported where there is no /proc alone: it takes a megabyte in every process.


def _sizes_by_psutil(pid: int) -> Sizes:
    import psutil

    with _psutil_errors():
        info = psutil.Process(pid).memory_info()
        return Sizes(info.vms, info.rss)


def _uss_by_psutil(pid: int) -> int:
    import psutil

    with _psutil_errors():
        return psutil.Process(pid).memory_full_info().uss


@contextmanager
def _psutil_errors() -> Iterator[None]:
    """Turn psutil's exceptions into the built-in exceptions that reading /proc raises."""
    import psutil

    try:
        yield
    except psutil.NoSuchProcess as gone:
        raise ProcessLookupError(str(gone)) from gone
    except psutil.AccessDenied as denied:
        raise PermissionError(str(denied)) from denied
