"""Servers of a user who has no other ones, and the command line that operates them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.server import Server
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE

COMMAND = [sys.executable, "-m", "multicore_server"]


class Operator:
    """Its servers' command sockets are in a directory of their own."""

    def __init__(self, make_server: Callable[..., Server], runtime: Path) -> None:
        self.runtime = runtime
        self.env = {"XDG_RUNTIME_DIR": str(runtime), "NO_COLOR": "", "PYTHONIOENCODING": "utf-8"}
        self._make_server = make_server
        self._stack = contextlib.ExitStack()

    def start(self, *options: str, workers: int = 2, app: str | None = None) -> Server:
        server = self._make_server(*([] if app is None else [app]))
        return server.start("-w", str(workers), *options, env=self.env, ready=workers)

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A verb, without a terminal; ``status`` is the exit status that it is to have."""
        done = subprocess.run(
            [*COMMAND, *arguments], env={**os.environ, **self.env}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def refused(self, *arguments: str) -> str:
        """The one line of a verb that ends with status 2."""
        done = self.run(*arguments, status=2)
        assert done.stdout == ""
        assert done.stderr.startswith("multicore-server: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("multicore-server: ").rstrip()

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """A verb that goes on while the test does something else."""
        process = subprocess.Popen(
            [*COMMAND, *arguments], env={**os.environ, **self.env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._stack.callback(_end, process)
        return process

    def terminal(self, *arguments: str, columns: int = 100, lines: int = 24, **env: str) -> Terminal:
        """A verb in a terminal."""
        command = [*COMMAND, *arguments]
        terminal = Terminal(command, self.runtime, {**self.env, **env}, columns=columns, lines=lines)
        self._stack.callback(terminal.end)
        return terminal

    def end(self) -> None:
        self._stack.close()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=10)
