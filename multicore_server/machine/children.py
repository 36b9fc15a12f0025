"""Child processes, as the kernel lists them.

Pure: it imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def become_subreaper() -> None:
    """From now on, processes whose parents die become this one's children, not init's, where they descend
    from it. See PR_SET_CHILD_SUBREAPER(2const). Raises OSError where the kernel has no such thing."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError as exc:  # not Linux
        raise OSError(str(exc)) from exc
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def children() -> list[int]:
    """The pids of this process's children, zombies too; none where /proc does not tell (it needs
    CONFIG_PROC_CHILDREN, and leaves one out when another ends at the same moment, see proc(5))."""
    pid = os.getpid()
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def has_ended_child() -> bool:
    """Whether a child has exited that is not reaped yet."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def name_of(pid: int) -> str:
    """The name of a process: not its command line, in which there may be secrets."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
