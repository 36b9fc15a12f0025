"""Parses values as people write them: ``"500ms"``, ``"300M"``, ``"80%"``, ``"on-failure"``, ``"0 4 * * *"``.

Every parser accepts text (from an environment variable) and any object (from a config file). It raises
ValueError with the words that follow the value in the error message, such as "is not a duration".
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

T = TypeVar("T")
Name = TypeVar("Name", bound=str)

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_DURATION = re.compile(_NUMBER + r"\s*(ms|s|m|h|d|)", re.ASCII)
_SIZE = re.compile(_NUMBER + r"\s*([KMG]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_PERCENT = re.compile(_NUMBER + r"\s*%", re.ASCII)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True} | dict.fromkeys(
    ("false", "0", "no", "off"), False
)
_HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Size:
    """A memory limit for one worker: bytes, or a percentage of a total that the workers share."""

    amount: float
    percent: bool = False

    def bytes(self, total: int, workers: int) -> int:
        """Return one worker's limit in bytes, when ``workers`` workers share ``total`` bytes."""
        return int(total * self.amount / 100 / workers) if self.percent else int(self.amount)

    def below(self, other: Size) -> bool:
        """Return whether this is certainly less. Bytes and percentages cannot be compared here: False."""
        return self.percent == other.percent and self.amount < other.amount


@dataclass(frozen=True, slots=True)
class Jitter:
    """Random extra time, so that workers of the same age are not replaced at the same time."""

    amount: float
    percent: bool = False

    def seconds(self, lifetime: float, random: float) -> float:
        """Return the seconds to add to a ``lifetime`` in seconds, for a ``random`` number in [0, 1)."""
        return random * (lifetime * self.amount / 100 if self.percent else self.amount)


def duration(value: object) -> float:
    """Return seconds, 0 or more. A bare number is seconds; ``ms``, ``s``, ``m``, ``h``, ``d`` are units."""
    return _amount(value, _DURATION, _SECONDS, "is not a duration")


def byte_count(value: object) -> int:
    """Parse a number of bytes like `size`, but without a percentage. Raises ValueError."""
    found = size(value)
    if found.percent:
        raise ValueError("is a percentage")
    return int(found.amount)


def size(value: object) -> Size:
    """Parse at least one byte (``K``, ``M``, ``G`` are 1024-based, as in PM2), or a percentage up to 100."""
    percent = _percentage(value)
    if percent is None:
        amount = int(_amount(value, _SIZE, _BYTES, "is not a size"))
        found = Size(amount)
    else:
        found = Size(percent, percent=True)
    if found.amount <= 0:
        raise ValueError("is not above 0")
    return found


def jitter(value: object) -> Jitter:
    """Parse a percentage of the lifetime from 0 to 100, or a duration."""
    percent = _percentage(value)
    return Jitter(duration(value)) if percent is None else Jitter(percent, percent=True)


def _percentage(value: object) -> float | None:
    """Return the number before a percent sign, or None if the value is not a percentage."""
    match = _PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    if (percent := float(match[1])) > 100:
        raise ValueError("is above 100%")
    return percent


def _amount(
    value: object, pattern: re.Pattern[str], units: dict[str, float] | dict[str, int], complaint: str
) -> float:
    number, unit = value, ""
    if isinstance(value, str) and (match := pattern.fullmatch(value.strip())):
        number = float(match[1])
        unit = match[2] if match[2] in units else match[2].upper()
    # In Python a bool is an int. It must not be read as one second or one byte.
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ValueError(complaint)
    with contextlib.suppress(OverflowError):
        amount = float(number * units[unit])
        if amount < 0:
            raise ValueError("is below 0")
        if math.isfinite(amount):
            return amount
    raise ValueError(complaint)


def boolean(value: object) -> bool:
    """Parse true, false, 1, 0, yes, no, on or off in any case, or a bool."""
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


def whole(minimum: int, maximum: int | None = None) -> Callable[[object], int]:
    """Return a parser of whole numbers from ``minimum`` to ``maximum`` (None: there is none)."""

    def parse(value: object) -> int:
        number = _integer(value)
        if number < minimum:
            raise ValueError(f"is below {minimum}")
        if maximum is not None and number > maximum:
            raise ValueError(f"is above {maximum}")
        return number

    return parse


def one_of(*names: Name) -> Callable[[object], Name]:
    """Return a parser that accepts one of ``names``, in any case."""

    def parse(value: object) -> Name:
        for name in names:
            if str(value).strip().lower() == name:
                return name
        raise ValueError("is unknown")

    return parse


def optional(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """Return a parser like ``parse`` that also accepts None, "none" and "", and returns None for them."""
    return lambda value: None if _is_none(value) else parse(value)


def above_zero(value: object) -> float:
    """Parse a duration that is not 0. Returns seconds."""
    if (seconds := duration(value)) == 0:
        raise ValueError("is not above 0")
    return seconds


def whole_seconds(value: object) -> int:
    """Parse a duration of whole seconds."""
    seconds = duration(value)
    if seconds != int(seconds):
        raise ValueError("is not a number of whole seconds")
    return int(seconds)


def boot_time(value: object) -> float | None:
    """Parse a duration. Returns seconds, or None for "timeout": it then depends on gunicorn's setting."""
    return None if str(value).strip().lower() == "timeout" else duration(value)


def worker_count(value: object) -> int:
    """Parse a number of workers. 0 (also "max") means one per usable CPU, -1 means one fewer."""
    text = str(value).strip().lower()
    return 0 if text == "max" else whole(-1)(value)


def restart_rule(value: object) -> Literal["true", "on-failure", "false"]:
    """Parse "on-failure", or any spelling of a boolean."""
    if str(value).strip().lower() == "on-failure":
        return "on-failure"
    return "true" if boolean(value) else "false"


def exit_codes(value: object) -> frozenset[int]:
    """Parse exit codes from 0 to 255: one code, codes separated by commas, or a collection."""
    if _is_none(value):
        return frozenset()
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, (list, tuple, set, frozenset)):
        several = [several]
    codes = frozenset(map(_integer, several))
    if not codes <= set(range(256)):
        raise ValueError("is outside 0 to 255")
    return codes


def cron_expression(value: object) -> str:
    """Check a cron expression (five fields, or six with seconds first). It must match some future time."""
    if not isinstance(value, str):
        raise ValueError("is not a cron expression")
    # Any start time works, because the search covers 50 years. It is naive, like the arbiter's own times.
    next_cron(value, datetime(2024, 1, 1))  # noqa: DTZ001 -- cron times are local wall-clock times
    return " ".join(value.split())


def address(value: object) -> str:
    """Parse host:port, [v6]:port or unix:PATH. None and "none" become the empty string."""
    if _is_none(value):
        return ""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("unix:") and text != "unix:" and "\0" not in text:  # the kernel would cut it there
        return text
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[1]) > 65535:
        raise ValueError("is not an address")
    return text


def host_names(value: object) -> frozenset[str]:
    """Parse host names separated by commas, or a collection; ``*.example.com`` and ``*`` are names too."""
    names = frozenset(str(name).strip().lower() for name in _several(value, "host names"))
    if not all(map(_HOST_NAME.fullmatch, names)):
        raise ValueError("is not a list of host names")
    return names


def _several(value: object, what: str) -> Collection[object]:
    """What is separated by commas, or in a collection; nothing for None and "none"."""
    if _is_none(value):
        return ()
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, (list, tuple, set, frozenset)):
        raise ValueError(f"is not a list of {what}")
    return several


def next_cron(expression: str, after: datetime) -> datetime:
    """Return the first time after ``after`` that matches. Both are naive local times.

    Raises ValueError if the expression is invalid or never matches.
    """
    from cronsim import CronSim, CronSimError

    try:
        found: datetime = next(CronSim(expression, after))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression ({error})") from None
    except StopIteration:
        raise ValueError("is a time that never comes") from None
    return found


def path(value: object) -> str:
    """Check a URL path: it starts with a slash and has no query and no white space."""
    if not isinstance(value, str) or not re.fullmatch(r"/[^\s?#]*", value.strip()):
        raise ValueError("is not a path")
    return value.strip()


def paths(value: object) -> frozenset[str]:
    """Parse paths separated by commas, or a collection; ``/static/*`` is every path that begins so."""
    found = frozenset(path(each) for each in _several(value, "paths"))
    if any("*" in each[:-1] for each in found):
        raise ValueError("is a path with a * before its end")
    return found


def variable(value: object) -> str:
    """Check the name of an environment variable."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value.strip(), re.ASCII):
        raise ValueError("is not a name of an environment variable")
    return value.strip()


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
        return int(value)
    raise ValueError("is not a whole number")


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none"))
