"""Values as people write them: ``"500ms"``, ``"300M"``, ``"80%"``, ``"on-failure"``, ``"0 4 * * *"``.

Every parser takes what an environment variable (text) or a config file (any object) may hold, and raises
ValueError with the words that follow the value in a message: "is no duration".
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
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
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/\[\]]+):(\d{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Size:
    """An amount of memory for one worker: bytes, or a percentage of a total that the workers share."""

    amount: float
    percent: bool = False

    def bytes(self, total: int, workers: int) -> int:
        """One worker's limit in bytes, of ``total`` bytes between ``workers`` workers."""
        return int(total * self.amount / 100 / workers) if self.percent else int(self.amount)

    def below(self, other: Size) -> bool:
        """Certainly smaller; bytes and percentages compare only once the machine is known."""
        return self.percent == other.percent and self.amount < other.amount


@dataclass(frozen=True, slots=True)
class Jitter:
    """Random extra time, so that workers of one age are not replaced together."""

    amount: float
    percent: bool = False

    def seconds(self, lifetime: float, random: float) -> float:
        """Seconds to add to a ``lifetime`` in seconds, for a ``random`` number in [0, 1)."""
        return random * (lifetime * self.amount / 100 if self.percent else self.amount)


def duration(value: object) -> float:
    """Seconds, 0 or more: a number is seconds already; ``ms``, ``s``, ``m``, ``h`` and ``d`` are units."""
    return _amount(value, _DURATION, _SECONDS, "is no duration")


def byte_count(value: object) -> int:
    """A number of bytes, as `size` reads it, without a percentage. Raises ValueError."""
    found = size(value)
    if found.percent:
        raise ValueError("is a percentage")
    return int(found.amount)


def size(value: object) -> Size:
    """At least one byte (``K``, ``M``, ``G`` are 1024-based, as in PM2), or a percentage up to 100."""
    percent = _percentage(value)
    if percent is None:
        amount = int(_amount(value, _SIZE, _BYTES, "is no size"))
        found = Size(amount)
    else:
        found = Size(percent, percent=True)
    if found.amount <= 0:
        raise ValueError("is not above 0")
    return found


def jitter(value: object) -> Jitter:
    """A percentage of the lifetime from 0 to 100, or a duration."""
    percent = _percentage(value)
    return Jitter(duration(value)) if percent is None else Jitter(percent, percent=True)


def _percentage(value: object) -> float | None:
    """The number before a percent sign; None when there is no such sign to read."""
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
    # A boolean is an int to Python, and never meant as one second or one byte.
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
    """true, false, 1, 0, yes, no, on, off in any case, or a bool."""
    try:
        return _BOOLEANS[str(value).strip().lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


def whole(minimum: int) -> Callable[[object], int]:
    """A parser of whole numbers from ``minimum`` on."""

    def parse(value: object) -> int:
        number = _integer(value)
        if number < minimum:
            raise ValueError(f"is below {minimum}")
        return number

    return parse


def one_of(*names: Name) -> Callable[[object], Name]:
    """A parser of one of ``names``, in any case."""

    def parse(value: object) -> Name:
        for name in names:
            if str(value).strip().lower() == name:
                return name
        raise ValueError("is unknown")

    return parse


def optional(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """``parse``, with None, "none" and "" for none."""
    return lambda value: None if _is_none(value) else parse(value)


def above_zero(value: object) -> float:
    """A duration in seconds that is not 0."""
    if (seconds := duration(value)) == 0:
        raise ValueError("is not above 0")
    return seconds


def worker_count(value: object) -> int:
    """A number of workers; 0 (also "max") stands for one per usable CPU, -1 for one fewer."""
    text = str(value).strip().lower()
    return 0 if text == "max" else whole(-1)(value)


def restart_rule(value: object) -> Literal["true", "on-failure", "false"]:
    """on-failure, or any way to write a boolean."""
    if str(value).strip().lower() == "on-failure":
        return "on-failure"
    return "true" if boolean(value) else "false"


def exit_codes(value: object) -> frozenset[int]:
    """Exit codes from 0 to 255: one, several with commas between, or a collection."""
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
    """A cron expression (five fields, or six with seconds first) that comes round."""
    if not isinstance(value, str):
        raise ValueError("is no cron expression")
    # Any start does: the search goes 50 years ahead. Naive as the arbiter's own times are.
    next_cron(value, datetime(2024, 1, 1))  # noqa: DTZ001 -- cron times are local wall-clock times
    return " ".join(value.split())


def address(value: object) -> str:
    """host:port, [v6]:port or unix:PATH; none is the empty string."""
    if _is_none(value):
        return ""
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("unix:") and text != "unix:":
        return text
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[1]) > 65535:
        raise ValueError("is no address")
    return text


def next_cron(expression: str, after: datetime) -> datetime:
    """The first time after ``after`` that fits; both naive local times. ValueError when none ever comes."""
    from cronsim import CronSim, CronSimError

    try:
        found: datetime = next(CronSim(expression, after))
    except CronSimError as error:
        raise ValueError(f"is no cron expression ({error})") from None
    except StopIteration:
        raise ValueError("is a time that never comes") from None
    return found


def path(value: object) -> str:
    """A URL path: a slash first, no query, no blanks."""
    if not isinstance(value, str) or not re.fullmatch(r"/[^\s?#]*", value.strip()):
        raise ValueError("is no path")
    return value.strip()


def variable(value: object) -> str:
    """The name of an environment variable."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value.strip(), re.ASCII):
        raise ValueError("is no name of an environment variable")
    return value.strip()


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
        return int(value)
    raise ValueError("is no whole number")


def _is_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in ("", "none"))
