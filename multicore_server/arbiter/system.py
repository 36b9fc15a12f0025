"""The arbiter's system calls and clocks in one object: tests use a simulated system instead."""

from __future__ import annotations

import os
import signal
import time as clocks
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn

from multicore_server.arbiter.forks import forks
from multicore_server.ipc.channel import MonitorChannel, WorkerChannel
from multicore_server.machine.children import become_subreaper, children, has_ended_child, name_of


def fork() -> int:
    """``os.fork``. The threads of a preloaded app are no error, also where warnings are (``-W error``): from
    Python 3.15 on such an error comes after the fork, and nobody would know of the child."""
    with warnings.catch_warnings(), forks.own():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return os.fork()


@dataclass(frozen=True, slots=True)
class System:
    """Each is the function of the operating system that has its name; `exit` is ``os._exit``."""

    fork: Callable[[], int] = fork
    kill: Callable[[int, int], None] = os.kill
    waitpid: Callable[[int, int], tuple[int, int]] = os.waitpid
    pipe: Callable[[], tuple[int, int]] = os.pipe
    close: Callable[[int], None] = os.close
    getpid: Callable[[], int] = os.getpid
    sigmask: Callable[[int, Collection[int]], object] = signal.pthread_sigmask
    setpgid: Callable[[int, int], None] = os.setpgid
    getsid: Callable[[int], int] = os.getsid
    children: Callable[[], list[int]] = children
    has_ended_child: Callable[[], bool] = has_ended_child
    name_of: Callable[[int], str] = name_of
    become_subreaper: Callable[[], None] = become_subreaper
    exit: Callable[[int], NoReturn] = os._exit
    monotonic: Callable[[], float] = clocks.monotonic
    time: Callable[[], float] = clocks.time
    sleep: Callable[[float], None] = clocks.sleep
    worker_channel: Callable[[], WorkerChannel] = WorkerChannel
    monitor_channel: Callable[[], MonitorChannel] = MonitorChannel
