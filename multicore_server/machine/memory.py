"""What a process uses and what this container or machine has, in bytes.

On Linux from /proc, see proc(5) and the kernel's Documentation/filesystems/proc.rst, which costs
microseconds for `rss` and milliseconds for `uss`; elsewhere from psutil.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multicore_server.machine.cgroup import memory_limit

_LINUX = sys.platform == "linux"
_PRIVATE = re.compile(rb"^Private_(?:Clean|Dirty|Hugetlb): *([0-9]+) kB$", re.MULTILINE)
_TOTAL = re.compile(rb"^MemTotal: *([0-9]+) kB$", re.MULTILINE)


def rss(pid: int, proc: Path = Path("/proc")) -> int:
    """Resident memory of a process in bytes, pages shared with others included.

    From /proc/PID/statm, second field, in pages. Raises ProcessLookupError when the process is
    gone (a zombie is: it has no memory left), PermissionError when it may not be looked at.
    """
    if not _LINUX:
        return _rss_by_psutil(pid)
    try:
        size, resident = (proc / str(pid) / "statm").read_bytes().split()[:2]
    except FileNotFoundError:  # reading says ESRCH, which is ProcessLookupError already
        raise ProcessLookupError(f"process {pid} has ended") from None
    # `resident` cannot tell: proc(5) calls it inaccurate, as the kernel counts in per-CPU batches.
    if not int(size):
        raise ProcessLookupError(f"process {pid} has ended")
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def uss(pid: int | None = None, proc: Path = Path("/proc")) -> int:
    """Memory in bytes that only this process has: what its end would free. None: our own.

    From Private_Clean, Private_Dirty and Private_Hugetlb of /proc/PID/smaps_rollup, or of smaps
    before Linux 4.14. A kernel that has neither (CONFIG_PROC_PAGE_MONITOR) leaves RSS, which is
    never less. Raises as `rss` does.
    """
    pid = os.getpid() if pid is None else pid
    if not _LINUX:
        return _uss_by_psutil(pid)
    text = _mappings(proc / str(pid))
    if text is None:
        return rss(pid, proc)
    if not text:
        raise ProcessLookupError(f"process {pid} has ended")
    return 1024 * sum(map(int, _PRIVATE.findall(text)))


def available(proc: Path = Path("/proc")) -> int:
    """Bytes of memory that this container or machine has, in use or not.

    The smaller of `cgroup.memory_limit` and MemTotal of /proc/meminfo.
    """
    limit, machine = memory_limit(proc), _machine(proc)
    return machine if limit is None else min(limit, machine)


def _machine(proc: Path) -> int:
    if _LINUX and (total := _TOTAL.search((proc / "meminfo").read_bytes())):
        return int(total[1]) * 1024
    import psutil

    return psutil.virtual_memory().total


def _mappings(process: Path) -> bytes | None:
    for name in ("smaps_rollup", "smaps"):
        with suppress(FileNotFoundError):
            return (process / name).read_bytes()
    return None


def _rss_by_psutil(pid: int) -> int:
    import psutil

    with _psutil_errors():
        return psutil.Process(pid).memory_info().rss


def _uss_by_psutil(pid: int) -> int:
    import psutil

    with _psutil_errors():
        return psutil.Process(pid).memory_full_info().uss


@contextmanager
def _psutil_errors() -> Iterator[None]:
    """psutil's exceptions as the built-in ones that /proc gives."""
    import psutil

    try:
        yield
    except psutil.NoSuchProcess as gone:
        raise ProcessLookupError(str(gone)) from gone
    except psutil.AccessDenied as denied:
        raise PermissionError(str(denied)) from denied
