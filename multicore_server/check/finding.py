"""A finding of a check."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("note", "warning", "error")


class Finding(NamedTuple):
    """``error``: the server would not start; ``warning``: it would, and something is probably not meant.
    ``detail`` is the traceback of an exception in the user's own code."""

    level: Level
    text: str
    detail: str = ""
