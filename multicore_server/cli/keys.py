"""Reads single keys from the terminal, and restores the terminal afterwards."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType, TracebackType

ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Keys:
    """A context manager. ``ended`` is the signal that has asked this program to exit, if any.

    The handlers only store it, so nothing interrupts the exit.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._handlers: dict[signal.Signals, object] = {}
        self.ended: int | None = None

    def __enter__(self) -> Keys:  # noqa: PYI034 -- Self is in typing from 3.11 on
        self._before = termios.tcgetattr(self._fd)
        for number in ENDS:
            self._handlers[number] = signal.signal(number, self._end)
        tty.setcbreak(self._fd, termios.TCSANOW)
        self._without_suspending()
        return self

    def _without_suspending(self) -> None:
        """Disable Ctrl-Z: a stopped program would leave the terminal in this mode."""
        now = termios.tcgetattr(self._fd)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._fd, termios.TCSANOW, now)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _end(self, number: int, _: FrameType | None) -> None:
        self.ended = number

    def wait(self, seconds: float) -> list[str]:
        """Return the keys of the next ``seconds``, as soon as there is one: characters, and names of
        arrows."""
        found, _, _ = select.select([self._fd], [], [], seconds)
        if not found:
            return []
        data = os.read(self._fd, 1024)
        if not data:  # nobody is there
            self.ended = signal.SIGHUP
        return list(parse(data.decode(errors="replace")))


def parse(text: str) -> Iterator[str]:
    """Yield the keys in what a terminal sends. Unknown escape sequences are skipped."""
    place = 0
    while place < len(text):
        if text[place] != "\x1b":
            yield text[place]
            place += 1
            continue
        if text[place + 1 : place + 2] not in ("[", "O"):
            place += 1  # the escape key alone
            continue
        place += 2
        while place < len(text) and not text[place].isalpha() and text[place] != "~":
            place += 1
        if (name := ARROWS.get(text[place : place + 1])) is not None:
            yield name
        place += 1
