"""Decides how many workers run, logs why, and tries the number if memory may not be enough for all."""

from __future__ import annotations

from typing import Any

from multicore_server.machine import cgroup, memory
from multicore_server.settings.sources import Given
from multicore_server.settings.table import Settings

MB = 2**20
# Bytes of the memory limit for each worker, below which the first one shows what a worker needs before the
# others are started: 64 workers that import an app at once in 512 MiB end in the kernel's hands.
ENOUGH = 128 * MB
USABLE = 0.9  # of the limit: the rest is for what workers need in requests, at the very least
AUTOMATIC = ("max", "0", "-1")


class WorkerNumber:
    """``wanted`` workers, as ``given``; ``limit`` is the memory of this container in bytes, None where there
    is no limit."""

    def __init__(self, wanted: int, given: Given, limit: int | None) -> None:
        self._wanted = wanted
        self._given = given
        self._limit = limit
        automatic = str(given.value).strip().lower() in AUTOMATIC
        self.tries = automatic and wanted > 1 and limit is not None and limit / wanted < ENOUGH

    @classmethod
    def of(cls, settings: Settings, cfg: Any) -> WorkerNumber:
        """Of a configuration, with the memory that there is now."""
        return cls(settings.workers, cfg.workers_given, cgroup.memory_limit())

    def reason(self, cpus: int, quota: float | None) -> str:
        """One line for the log. ``cpus`` are usable, ``quota`` of them at most."""
        text = f"workers: {self._wanted} ({self._given.source}, {self._given.value!r})"
        if str(self._given.value).strip().lower() in AUTOMATIC:
            why = "no CPU quota" if quota is None else f"a CPU quota of {quota:g}"
            text += f"; {cpus} usable CPU{'s' * (cpus != 1)}, {why}"
        if self.tries and self._limit is not None:
            text += f", {self._limit // MB} MiB of memory: the first worker shows how many fit"
        return text

    def learn(self, need: int, others: int) -> tuple[int, str]:
        """How many workers to run where one needs so many bytes and the other processes have ``others``; and
        a line about it where these are fewer than wanted."""
        if self._limit is None:  # it was lifted meanwhile
            return self._wanted, ""
        room = int((self._limit * USABLE - others) // max(need, 1))
        number = max(1, min(self._wanted, room))
        if number == self._wanted:
            return number, ""
        need_and_limit = f"one uses {need // MB} MiB after its boot, of {self._limit // MB} MiB in all"
        return number, (
            f"workers: {number} instead of {self._wanted}: {need_and_limit}; set workers to a number to get "
            "that many, or give more memory"
        )


def need_of(pid: int) -> int:
    """Bytes that one more worker like this one takes. Raises OSError."""
    try:
        return memory.uss(pid)
    except PermissionError:  # an arbiter without the right to look into another user's process
        return memory.rss(pid)


def oom_line() -> str:
    """A warning where the kernel ends the whole server for one worker; empty where it does not."""
    if not (cgroup.memory_limit() and cgroup.oom_group()):
        return ""
    return (
        "memory.oom.group is 1, as in Kubernetes from 1.28 on: at the memory limit the kernel kills the "
        "whole server, not one worker; set max_memory_kill or max_memory_restart, which act before that"
    )
