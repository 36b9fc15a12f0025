"""Processes that tests watch: workers and monitors of an arbiter, and whether one has ended."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from tests.support.waiting import wait_for


def is_monitor(pid: int) -> bool:
    """Whether this child of an arbiter is its monitor: that has a process group of its own."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def workers_of(arbiter: int) -> list[int]:
    """The pids of an arbiter's workers, also of those that have ended and were not reaped."""
    return [child.pid for child in psutil.Process(arbiter).children() if not is_monitor(child.pid)]


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_gone(pid: int) -> None:
    wait_for(lambda: gone(pid), f"the end of {pid}")


def processes_in(directory: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _directory_of(process) == str(directory)]


def _directory_of(process: psutil.Process) -> str | None:
    try:
        return process.cwd()
    except (psutil.Error, OSError):  # gone meanwhile: older psutils let the OSError through
        return None
