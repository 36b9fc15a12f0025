"""The real server in a directory of its own: started by the real command, polled with deadlines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import psutil

from tests.support.addresses import free_port
from tests.support.apps import HELLO
from tests.support.processes import is_monitor
from tests.support.waiting import PATIENCE, wait_for

FORK = 0.5  # seconds in which a new process shows what it is


class Server:
    """``gunicorn -k multicore_server.Worker`` with an app in a directory of its own."""

    def __init__(self, directory: Path, app: str = HELLO, module: str = "app") -> None:
        self.directory = directory
        self.port = free_port()
        self.log_path = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.listens_for_scrapers = False  # all servers have the same default address
        self.write(f"{module}.py", app)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        # Two versions of a module within one second have the same cached bytecode otherwise.
        for cached in self.directory.glob("__pycache__/*"):
            cached.unlink()
        return path

    def start(
        self, *options: str, app: str = "app:app", bind: str | None = None, env: dict[str, str] | None = None,
        ready: int | None = None, command: list[str] | None = None, pass_fds: tuple[int, ...] = (),
    ) -> Server:  # fmt: skip
        """Start the server; wait until ``ready`` workers are (None: do not wait). An empty ``bind`` leaves
        the address to the config file."""
        default = [sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
        binding = [] if bind == "" else ["-b", bind or f"127.0.0.1:{self.port}"]
        arguments = [*(command or default), *binding, *options, app]
        usual = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        if not self.listens_for_scrapers:
            usual["MULTICORE_METRICS_BIND"] = "none"
        environ = {**os.environ, **usual, **(env or {})}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, cwd=self.directory, env=environ, pass_fds=pass_fds,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if ready is not None:
            self.wait_ready(ready)
        return self

    # --- what it says and does ---

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def logged(self, pattern: str) -> list[str]:
        """The log lines that contain a match of this regular expression."""
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_logged(self, pattern: str, count: int = 1, timeout: float = PATIENCE) -> list[str]:
        def found() -> list[str] | None:
            lines = self.logged(pattern)
            return lines if len(lines) >= count else None

        return wait_for(found, f"{count} log lines like {pattern!r}", timeout) or []

    def wait_ready(self, count: int, timeout: float = PATIENCE) -> None:
        def found() -> bool:
            status = self.process.poll() if self.process else None
            if len(self.logged(r"instance=\d+ gen=\d+ pid=\d+ ready after")) >= count:
                return True
            assert not status, f"the server has ended with status {status}"
            return False

        wait_for(found, f"{count} workers ready", timeout)

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def children(self) -> list[int]:
        """The pids of the arbiter's living children."""
        try:
            children = psutil.Process(self.pid).children()
            return sorted(child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[int]:
        """Those of them that are no monitor. One that was forked a moment ago does not yet show what it is:
        there is a line in the log for each worker."""

        found: list[int] = []

        def known() -> bool:
            found[:] = [pid for pid in self.children() if not is_monitor(pid)]
            return all(self.logged(rf"pid={pid} started") for pid in found)

        with contextlib.suppress(AssertionError):  # the log may be elsewhere
            wait_for(known, "children that are in the log", FORK)
        return found

    def monitor(self) -> int:
        """The pid of the monitor, once there is one."""

        def found() -> int:
            return next(filter(is_monitor, self.children()), 0)

        return wait_for(found, "a monitor")

    def worker_of(self, instance: int) -> int:
        """The pid of the newest worker of this instance that has become ready."""
        lines = self.logged(rf"instance={instance} gen=\d+ pid=\d+ ready after")
        return int(re.findall(r"pid=(\d+)", lines[-1])[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        options.setdefault("timeout", PATIENCE)
        headers = {"connection": "close", **options.pop("headers", {})}
        return httpx.get(self.url + path, headers=headers, **options)

    def ends_within(self, seconds: float) -> None:
        """TERM; it ends in this time, with status 0."""
        self.signal(signal.SIGTERM)
        assert self.wait_exit(seconds) == 0

    def end(self) -> None:
        """End everything that was started here."""
        if self.process is None:
            return
        family = []
        try:
            arbiter = psutil.Process(self.process.pid)
            family = [arbiter, *arbiter.children(recursive=True)]
        except psutil.NoSuchProcess:
            pass
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)


MakeServer: TypeAlias = Callable[..., Server]
