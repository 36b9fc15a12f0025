"""Python imports this before all else where its directory is in PYTHONPATH: it takes away what macOS lacks.

`psutil` keeps what it reads from /proc: elsewhere it asks the kernel in other ways.
"""

from __future__ import annotations

import builtins
import io
import os
import select
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable
from types import FrameType
from typing import Any

import psutil  # noqa: F401 - it goes by sys.platform when it is imported

sysconfig.get_config_vars()  # it reads a file that has the platform's name, once

LINUX = {
    os: "memfd_create eventfd eventfd_read eventfd_write pidfd_open sched_getaffinity posix_fallocate O_PATH",
    select: "epoll",
    signal: "SIGRTMIN SIGRTMAX pidfd_send_signal sigtimedwait sigwaitinfo",
    socket: "MSG_CMSG_CLOEXEC SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED TCP_INFO",
}


class WithoutProc:
    """A function that finds nothing in /proc. It is an object, as C functions are: in Python 3.10, pathlib
    keeps some in a class, where a function would become a method."""

    def __init__(self, function: Callable[..., Any], answer: bool | None = None) -> None:
        self._function = function
        self._answer = answer

    def __call__(self, path: Any, *args: Any, **options: Any) -> Any:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith("/proc") and not from_psutil():
            if self._answer is not None:
                return self._answer
            raise FileNotFoundError(2, os.strerror(2), str(path))
        return self._function(path, *args, **options)


def from_psutil() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.endswith("pathlib.py"):
        frame = frame.f_back
    return frame is not None and f"{os.sep}psutil{os.sep}" in frame.f_code.co_filename


def socketpair(family: int = socket.AF_UNIX, kind: int = socket.SOCK_STREAM, number: int = 0) -> Any:
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(93, "Protocol not supported")
    return linux_socketpair(family, kind, number)


linux_socketpair, socket.socketpair = socket.socketpair, socketpair  # type: ignore[assignment]
for module, names in LINUX.items():
    for name in names.split():
        delattr(module, name)
for name in ("stat", "lstat", "open", "listdir", "scandir", "readlink"):
    setattr(os, name, WithoutProc(getattr(os, name)))
os.access = WithoutProc(os.access, False)
builtins.open = io.open = WithoutProc(open)  # type: ignore[assignment]  # not overloaded
sys.platform = "darwin"
