"""Counts the CPUs that this process can use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from multicore_server.machine.cgroup import cpu_quota


def usable_cpus(proc: Path = Path("/proc")) -> int:
    """Return the number of CPUs in the affinity mask, at most the cgroup's quota rounded up, at least 1.

    The quota is rounded up, because with 1.5 CPUs one worker would leave a third of the quota unused.
    Sources: sched_getaffinity(2), where it exists, and `cgroup.cpu_quota`.
    """
    quota = cpu_quota(proc)
    cpus = _allowed_cpus()
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def _allowed_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
