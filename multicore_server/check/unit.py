"""Finds how much time systemd gives a service to stop: ``TimeoutStopSec``, as far as it is known.

Sources: systemd.service(5), systemd.time(7), systemd.exec(5) on INVOCATION_ID.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from multicore_server.machine.process import service_of

PATIENCE = 5.0  # seconds for systemctl
DEFAULT = 90.0  # seconds: DefaultTimeoutStopSec, as systemd comes
_KEYS = ("TimeoutStopSec", "TimeoutSec")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Zµμ]*)")
_UNITS = {
    **dict.fromkeys(("usec", "us", "µs", "μs"), 1e-6),
    **dict.fromkeys(("msec", "ms"), 1e-3),
    **dict.fromkeys(("", "seconds", "second", "sec", "s"), 1.0),
    **dict.fromkeys(("minutes", "minute", "min", "m"), 60.0),
    **dict.fromkeys(("hours", "hour", "hr", "h"), 3600.0),
    **dict.fromkeys(("days", "day", "d"), 86400.0),
    **dict.fromkeys(("weeks", "week", "w"), 604800.0),
}


class StopTimeout(NamedTuple):
    """``seconds`` from SIGTERM to SIGKILL, infinite where there is no limit; ``source`` says who says so."""

    seconds: float
    source: str


class UnitError(Exception):
    """A unit that cannot be read: one line."""


def stop_timeout(unit: str | None) -> StopTimeout | None:
    """That of ``unit``, a file or a name that systemd knows; None: of the service that this process is in.

    None where this process is in no service, or systemd does not answer. Raises UnitError for a unit that
    was named and cannot be read.
    """
    if unit is None:
        own = service_of("self") if "INVOCATION_ID" in os.environ else None
        return None if own is None else _ask(own.name)
    path = Path(unit)
    if "/" in unit or path.is_file():
        return _read(path)
    found = _ask(unit)
    if found is None:
        raise UnitError(f"--unit: systemd does not tell about {unit!r}; give the unit's file")
    return found


def _read(path: Path) -> StopTimeout:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as exc:
        raise UnitError(f"--unit: {str(path)!r} cannot be read: {exc.strerror}") from exc
    found = StopTimeout(DEFAULT, "systemd's default")
    section = ""
    for line in map(str.strip, lines):
        name, _, value = (part.strip() for part in line.partition("="))
        if line.startswith("["):
            section = line
        elif section == "[Service]" and name in _KEYS:
            found = StopTimeout(_seconds(value) if value else DEFAULT, f"{name} in {path}")
    return found


def _ask(name: str) -> StopTimeout | None:
    for manager in ([], ["--user"]):
        command = ["systemctl", *manager, "show", "--property=LoadState,TimeoutStopUSec", "--", name]
        try:
            done = subprocess.run(  # noqa: S603 - the administrator's own unit
                command, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        said = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        if said.get("LoadState") == "loaded" and said.get("TimeoutStopUSec"):
            return StopTimeout(_seconds(said["TimeoutStopUSec"]), f"TimeoutStopSec of {name}")
    return None


def _seconds(text: str) -> float:
    """A time span as systemd has it: ``45``, ``1min 30s``, ``infinity``. Raises UnitError."""
    if text == "infinity":
        return math.inf
    parts = _SPAN.findall(text)
    if not parts or _SPAN.sub("", text).strip() or any(unit not in _UNITS for _, unit in parts):
        raise UnitError(f"--unit: {text!r} is not a time span of systemd's")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
