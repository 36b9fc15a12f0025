"""What benchmarks share: servers in a scratch directory, their apps (files of ``tests/apps``), waiting."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LOCAL = "127.0.0.1"
APPS = Path(__file__).parents[1] / "apps"
OURS = "multicore_server.Worker"
UVICORN_WORKER = "uvicorn_worker.UvicornWorker"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
REQUEST_CLOSE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ENV = {
    **os.environ,
    "MULTICORE_METRICS_BIND": "",
    # Crash after crash would be slowed down and then given up.
    "MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0",
    "MULTICORE_MAX_RESTARTS": "1000",
}
ENV.pop("PYTHONDONTWRITEBYTECODE", None)  # or ours, run from a checkout, is compiled at every start


def provide(directory: Path, *apps: str) -> None:
    """Copy these apps of ``tests/apps`` into the directory that servers run in."""
    for app in apps:
        shutil.copy(APPS / f"{app}.py", directory)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether a request to / is answered with 200."""
    try:
        with socket.create_connection((LOCAL, port), timeout=1) as client:
            client.sendall(REQUEST_CLOSE)
            return client.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def cpu_seconds_of(pid: int) -> float:
    """Threads included, by the scheduler's own clock (proc(5)): an idle process uses less than a tick. What a
    process that has ended has used is not known any more."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def poll(condition: Callable[[], object], interval: float = 0.01, patience: float = 60.0) -> None:
    """Wait until ``condition()`` is true; after ``patience`` seconds the benchmark ends."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("benchmark: the server did not do what was waited for")
        time.sleep(interval)


class Process:
    """One server with an address of its own; what it says is in ``log``."""

    def __init__(
        self, directory: Path, command: Callable[[int], list[str]], env: dict[str, str] = ENV
    ) -> None:
        self.port = free_port()
        self.log = directory / f"{self.port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command(self.port), cwd=directory, env=env, stderr=log)

    def text(self) -> str:
        return self.log.read_text()

    def logged(self, pattern: str) -> int:
        """How often this regular expression is in the log."""
        return len(re.findall(pattern, self.text()))

    def workers(self) -> list[psutil.Process]:
        """Its children but the monitor, which has a process group of its own."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if _has_group_of_another(child.pid)]

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _has_group_of_another(pid: int) -> bool:
    try:
        return os.getpgid(pid) != pid
    except ProcessLookupError:  # reaped since its parent was asked
        return False


def gunicorn(worker: str, workers: int, app: str, *options: str) -> Callable[[int], list[str]]:
    """The command of gunicorn with this worker class, for an address that is still to be given."""
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "-w", str(workers), *options]
    return lambda port: [*command, "-b", f"{LOCAL}:{port}", app]


@contextmanager
def serving(
    directory: Path, command: Callable[[int], list[str]], env: dict[str, str] = ENV
) -> Iterator[Process]:
    """A server that answers."""
    server = Process(directory, command, env)
    try:
        poll(lambda: answers(server.port))
        time.sleep(0.5)  # the other workers
        yield server
    except SystemExit:
        sys.stderr.write(server.text())
        raise
    finally:
        server.end()
