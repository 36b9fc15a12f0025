"""A command in a pseudo-terminal, and what its screen shows: pyte is the terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pyte

from tests.support.waiting import PATIENCE


class Terminal:
    """``raw`` is all that was written to it; ``before`` are its modes as the command finds them."""

    def __init__(
        self, command: list[str], directory: Path, env: dict[str, str], columns: int = 100, lines: int = 24
    ) -> None:
        self._ours, self._theirs = os.openpty()
        self.resize(columns, lines)
        self.before = self.modes()
        self.raw = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._stream.select_other_charset("@")
        self._stream.use_utf8 = True
        environ = {**os.environ, "TERM": "xterm-256color", **env}
        environ.pop("COLUMNS", None)
        environ.pop("LINES", None)
        self.process = subprocess.Popen(
            command, cwd=directory, env=environ, stdin=self._theirs, stdout=self._theirs,
            stderr=self._theirs, start_new_session=True,
        )  # fmt: skip

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
        if hasattr(self, "_screen"):
            self._screen.resize(lines, columns)

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def shown(self) -> str:
        """What the screen shows now."""
        self._read(0.0)
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_shown(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        deadline = time.monotonic() + timeout
        while True:
            if found := re.search(pattern, self.shown, re.MULTILINE):
                return found
            assert time.monotonic() < deadline, f"not shown: {pattern}\n{self.shown}"
            self._read(0.05)

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end\n{self.shown}"
            self._read(0.05)
        self._read(0.0)
        assert self.process.returncode is not None
        return self.process.returncode

    def _read(self, timeout: float) -> None:
        while select.select([self._ours], [], [], timeout)[0]:
            data = os.read(self._ours, 65536)
            self.raw += data
            self._stream.feed(data)
            timeout = 0.0

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)
