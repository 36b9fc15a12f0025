"""What the kernel knows about a process: on Linux from /proc (proc(5)), elsewhere from psutil."""

from __future__ import annotations

import os
from pathlib import Path

HAS_PROC = os.access("/proc/self/statm", os.R_OK)  # Linux has it
_AFTER_NAME = 19  # starttime, the 22nd field of /proc/PID/stat, among those after the name in parentheses


def start_time(proc: Path = Path("/proc")) -> float:
    """Return when this process was started, in seconds since the epoch.

    Raises OSError where the machine does not tell: systemd's ProcSubset=pid hides when Linux was booted.
    """
    if not HAS_PROC:
        return _start_by_psutil()
    fields = (proc / "self" / "stat").read_text().rpartition(")")[2].split()
    return int(fields[_AFTER_NAME]) / os.sysconf("SC_CLK_TCK") + _boot_time(proc)


def _boot_time(proc: Path) -> int:
    for line in (proc / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1])
    raise OSError("/proc/stat has no btime")


def _start_by_psutil() -> float:
    import psutil  # here alone: it takes a megabyte in every process

    try:
        return psutil.Process().create_time()
    except psutil.Error as exc:
        raise OSError(str(exc)) from exc


def unit_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The options of journalctl for the systemd service that a process belongs to, such as
    ``--user -u shop.service``; empty where it belongs to none, or the kernel does not say it."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        *above, last = line.split(":", 2)[2].split("/")
        if last.endswith(".service") and not last.startswith("user@"):
            of_user = any(part.startswith("user@") for part in above)
            return f"--user -u {last}" if of_user else f"-u {last}"
    return ""
