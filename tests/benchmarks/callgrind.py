"""Counts what one process does, with valgrind's callgrind: instructions in user space, and system calls.

On valgrind's processor there is no vDSO: a look at the clock is a system call there, and is counted.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.servers import Command

OPTIONS = (
    "--tool=callgrind",
    "--instr-atstart=no",  # a start takes seconds and not minutes
    "--collect-systime=yes",
    "--trace-children=yes",  # vgdb does not reach forked children otherwise
    "--fair-sched=try",  # an app's threads take turns
)


class Counts(NamedTuple):
    instructions: float
    calls: float

    def minus(self, other: Counts) -> Counts:
        return Counts(self.instructions - other.instructions, self.calls - other.calls)

    def times(self, factor: float) -> Counts:
        return Counts(self.instructions * factor, self.calls * factor)


def parse(profile: str) -> Counts:
    """The totals of a file that callgrind has written.

    Raises ValueError where it is none, or without system calls.
    """
    events = re.search(r"^events: (.+)$", profile, re.MULTILINE)
    totals = re.search(r"^totals: ([\d ]+)$", profile, re.MULTILINE)
    if events is None or totals is None:
        raise ValueError("not a profile of callgrind's")
    names, numbers = events[1].split(), [float(number) for number in totals[1].split()]
    # Events at the end that have not happened are left out.
    found = dict(itertools.zip_longest(names, numbers, fillvalue=0.0))
    if missing := {"Ir", "sysCount"} - found.keys():
        raise ValueError(f"a profile of callgrind's without {', '.join(sorted(missing))}")
    return Counts(found["Ir"], found["sysCount"])


def under_callgrind(command: Command, directory: Path) -> Command:
    """The command of a server whose processes a `Counter` can count; their files are in the directory."""
    files = [f"--callgrind-out-file={directory}/counts.%p", f"--log-file={directory}/valgrind.%p"]
    vgdb = f"--vgdb-prefix={directory}/vgdb"
    return lambda port: ["valgrind", *OPTIONS, *files, vgdb, *command(port)]


class Counter:
    """Of one process; what it does is counted from now on."""

    def __init__(self, directory: Path, pid: int) -> None:
        self._directory = directory
        self._pid = pid
        self._read = 0
        self._ask("instrumentation", "on")

    def read(self) -> Counts:
        """What the process has done since it was read last."""
        self._ask("dump")
        self._read += 1
        return parse((self._directory / f"counts.{self._pid}.{self._read}").read_text())

    def _ask(self, *command: str) -> None:
        prefix = f"--vgdb-prefix={self._directory}/vgdb"
        subprocess.run(
            ["vgdb", prefix, f"--pid={self._pid}", *command], check=True, capture_output=True, timeout=60
        )
