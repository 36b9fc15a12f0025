"""Finds which worker wrote a line of the log, and how the line is shown.

Pure. A line names its worker by its instance or by its pid. What a worker prints names neither: it belongs
to no worker, unless it continues the line before it (a traceback).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import click

from multicore_server.cli.text import plain
from multicore_server.ipc.report import Status

COLORS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")

_INSTANCE = re.compile(r"(?:^|[\s\[(])instance=(\d{1,9})\b")
_WORKER = re.compile(r"instance=(\d{1,9}) gen=\d+ pid=(\d{1,9})\b")  # ipc/identity.py
_PID = re.compile(r"\[[^\]]*\] \[(\d{1,9})\] \[")  # gunicorn's: time, pid, level
BAD = ("WARNING", "ERROR", "CRITICAL")
_WARNING = re.compile(rf"\[[^\]]*\] \[\d{{1,9}}\] \[(?:{'|'.join(BAD)})\] (.*)")
_CONTINUES = re.compile(r"\s|Traceback \(|During handling|The above exception|$")


def instance_of(line: str, instances: Mapping[int, int]) -> int | None:
    """The worker that a line names, by itself; ``instances`` are by pid."""
    if line.startswith("{"):
        return _in_json(line, instances)
    if found := _INSTANCE.search(line):
        return int(found[1])
    found = _PID.match(line)
    return instances.get(int(found[1])) if found else None


def _in_json(line: str, instances: Mapping[int, int]) -> int | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    instance, pid = record.get("instance"), record.get("pid")
    if isinstance(instance, int):
        return instance
    return instances.get(pid) if isinstance(pid, int) else None


class Speakers:
    """Tells of line after line whose it is. It learns the workers' pids from the lines, too."""

    def __init__(self, status: Status | None = None) -> None:
        self._instances = _instances(status) if status else {}
        self._last: int | None = None
        self._in_traceback = False

    def of(self, line: str) -> int | None:
        """The instance, or None."""
        if found := _WORKER.search(line):
            self._instances[int(found[2])] = int(found[1])
        instance = instance_of(line, self._instances)
        if instance is not None or line.startswith(("[", "{")):
            self._last, self._in_traceback = instance, False
        elif _CONTINUES.match(line):
            self._in_traceback = self._in_traceback or bool(line.strip())
        elif self._in_traceback:  # its last line, the exception
            self._in_traceback = False
        else:
            self._last = None
        return self._last


def _instances(status: Status) -> dict[int, int]:
    """Of the workers that there are, and that there were lately."""
    events = ((event["pid"], event["instance"]) for event in status["events"])
    found = {pid: instance for pid, instance in events if pid is not None and instance is not None}
    workers = status["workers"]
    return found | {it["pid"]: worker["instance"] for worker in workers for it in worker["processes"]}


def warning_in(line: str) -> str:
    """The text of a line that is a warning or worse, else nothing."""
    if not line.startswith("{"):
        found = _WARNING.match(line)
        return found[1] if found else ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(record.get("message", "")) if record.get("level") in BAD else ""


def shown(line: str, instance: int | None) -> str:
    """In a terminal: without control characters, in the colour of its worker."""
    text = "\t".join(map(plain, line.split("\t")))
    return text if instance is None else click.style(text, fg=COLORS[instance % len(COLORS)])
