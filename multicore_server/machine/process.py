"""What the kernel knows about a process: on Linux from /proc (proc(5)), elsewhere from psutil."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

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


class ServiceName(NamedTuple):
    """A service of systemd's, such as ``shop.service``; ``of_user``: of a user's own manager."""

    name: str
    of_user: bool


def service_of(pid: int | str, proc: Path = Path("/proc")) -> ServiceName | None:
    """Return the service that a process, or ``self``, belongs to; None if it belongs to none, or the kernel
    does not say it."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        services = [part for part in line.split(":", 2)[2].split("/") if part.endswith(".service")]
        managers = [part for part in services if part.startswith("user@")]
        if len(services) > len(managers):
            return ServiceName([part for part in services if part not in managers][-1], bool(managers))
    return None


def unit_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The options of journalctl for the service of a process, such as ``--user -u shop.service``; empty where
    it has none."""
    service = service_of(pid, proc)
    if service is None:
        return ""
    return f"--user -u {service.name}" if service.of_user else f"-u {service.name}"
