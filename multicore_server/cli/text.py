"""Formats text for terminals: names without control characters, amounts in readable units."""

from __future__ import annotations

import unicodedata
from datetime import datetime

from multicore_server.cli.health import Answered
from multicore_server.ipc.identity import identity
from multicore_server.ipc.report import EventReport

NOTHING = "-"


def plain(text: object) -> str:
    """Return the text on one line, with escapes in place of characters that do not print."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    return sum(_columns_of(c) for c in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Cut the text to ``width`` columns. A tilde shows that it was cut."""
    if columns(text) <= width:
        return text
    kept = ""
    for character in text:
        if columns(kept + character) > width - 1:
            break
        kept += character
    return kept + "~"


# --- amounts ---


def duration(seconds: float | None) -> str:
    """Format like `pm2 list`: the biggest unit, ``43s``, ``2h``, ``12D``."""
    if seconds is None:
        return NOTHING
    for unit, length in (("D", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(max(0.0, seconds))}s"


def memory(amount: float | None) -> str:
    """Format bytes, 1024-based: ``63.2mb``."""
    if amount is None:
        return NOTHING
    for unit, size in (("gb", 2**30), ("mb", 2**20), ("kb", 2**10)):
        if amount >= size:
            return f"{amount / size:.1f}{unit}"
    return f"{int(amount)}b"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}%"


def rate(value: float | None) -> str:
    """Format a number per second: with one decimal if it is small."""
    if value is None:
        return NOTHING
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"


def errors(answered: Answered | None) -> str:
    """Format 5xx responses a second and their share: ``0.4 1.2%``; ``0`` if there are none."""
    if answered is None:
        return NOTHING
    if not answered.errors:
        return "0"
    return f"{rate(answered.errors / answered.seconds)} {answered.share or 0:.1%}"


def left(answered: Answered | None) -> str:
    """Format the requests a second whose client left without its response."""
    return NOTHING if answered is None else rate(answered.left / answered.seconds)


def milliseconds(seconds: float | None) -> str:
    """Format ``3.1ms``; from a second on, ``2.50s``."""
    if seconds is None:
        return NOTHING
    if seconds >= 1:
        return f"{seconds:.2f}s"
    return f"{seconds * 1000:.1f}ms" if seconds < 0.1 else f"{seconds * 1000:.0f}ms"


def moment(at: float | None) -> str:
    """Format seconds since the epoch as local time."""
    if at is None:
        return NOTHING
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")


def event_text(event: EventReport) -> str:
    """Return an event's text with its worker in front."""
    who = identity(event["instance"], event["generation"], event["pid"])
    in_hand = event.get("in_hand")  # servers of older versions do not say it
    text = f"{event['text']}; in progress: {in_hand}" if in_hand else event["text"]
    return plain(f"{who} {text}" if who else text)
