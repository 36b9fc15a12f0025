"""Shows the progress of a command on stderr: a bar on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from multicore_server.cli.servers import GoneError, LeftError, NoAnswerError, RunningServer, Trouble
from multicore_server.cli.table import understands_escapes
from multicore_server.cli.waiting import CommandResult, Step, Wait

POLL = 0.2  # seconds
PATIENCE = 15.0  # seconds without an answer: a reload may replace the monitor
WIDTH = 24


class Progress:
    """Shows progress. ``silent``: shows nothing."""

    def __init__(self, what: str, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._what = what
        self._stream = stream or sys.stderr
        self._silent = silent
        self._bar = understands_escapes(self._stream)
        self._began = time.monotonic()
        self._last: tuple[int, int] | None = None

    def show(self, step: Step) -> None:
        if self._silent:
            return
        before, self._last = self._last, (step.done, step.total)  # first: an interrupt may come meanwhile
        if self._bar:
            self._write(f"\r{self._drawn(step)}\x1b[K")
        elif before != self._last:
            self._write(f"{step.done} of {step.total} {self._what}\n")

    def end(self) -> None:
        """Remove the bar."""
        if self._bar and self._last is not None:
            self._write("\r\x1b[K")

    def _drawn(self, step: Step) -> str:
        full = WIDTH * step.done // max(1, step.total)
        done, left = self._characters()
        bar = done * full + left * (WIDTH - full)
        return f"[{bar}] {step.done}/{step.total} {self._what}, {time.monotonic() - self._began:.0f} s"

    def _characters(self) -> tuple[str, str]:
        return ("█", "░") if "utf" in (self._stream.encoding or "").lower() else ("#", ".")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def wait(server: RunningServer, command: Wait, *, silent: bool = False) -> CommandResult:
    """Follow a command until it is done. Raises LeftError when it is interrupted."""
    progress = Progress(command.what, silent=silent)
    try:
        return _follow(server, command, progress)
    except KeyboardInterrupt:
        raise LeftError("no longer waiting; the server continues") from None
    finally:
        progress.end()


def _follow(server: RunningServer, command: Wait, progress: Progress) -> CommandResult:
    heard = time.monotonic()
    while True:
        try:
            status = server.status()
        except GoneError:
            return CommandResult(False, "the server has exited")
        except NoAnswerError as exc:
            if time.monotonic() - heard > PATIENCE:
                return CommandResult(False, exc.message)
        else:
            heard = time.monotonic()
            step = command.check(status)
            progress.show(step)
            if step.outcome is not None:
                return step.outcome
            if status["stopping"]:
                return CommandResult(False, "the server is stopping")
        time.sleep(POLL)


def wait_for_end(server: RunningServer, *, silent: bool = False) -> CommandResult:
    """Wait until the arbiter is gone. Raises LeftError like `wait`."""
    progress = Progress("workers left to exit", silent=silent)
    try:
        _watch_end(server, progress)
    except KeyboardInterrupt:
        raise LeftError("no longer waiting; the server continues to stop (--now stops it at once)") from None
    finally:
        progress.end()
    return CommandResult(True, "stopped")


def _watch_end(server: RunningServer, progress: Progress) -> None:
    total = 0
    while server.lives():
        try:
            left = sum(len(worker["processes"]) for worker in server.status()["workers"])
        except Trouble:  # the monitor ends before the arbiter does
            left = 0
        total = max(total, left)
        if left:
            progress.show(Step(left, total))
        time.sleep(POLL)
