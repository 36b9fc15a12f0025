"""Real servers in ``tmp_path``: the real command, polled with deadlines, the log shown on failure."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest
import trustme

from tests.integration.raw_client import Connection

T = TypeVar("T")

PATIENCE = 20.0  # seconds that anything may take on a loaded machine

HELLO = """
import os, time

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"]
    if path == "/exit":
        os._exit(int(scope["query_string"] or 1))
    if path == "/block":
        time.sleep(float(scope["query_string"]))
    body = str(os.getpid()).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


def wait_for(condition: Callable[[], T], what: str = "condition", timeout: float = PATIENCE) -> T:
    """Poll until ``condition()`` is true, and return it."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


def is_monitor(pid: int) -> bool:
    """Whether this child of an arbiter is its monitor: that has a process group of its own."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def workers_of(arbiter: int) -> list[int]:
    """The pids of an arbiter's workers, also of those that have ended and were not reaped."""
    return [child.pid for child in psutil.Process(arbiter).children() if not is_monitor(child.pid)]


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


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
        """Those of them that are no monitor."""
        return [pid for pid in self.children() if not is_monitor(pid)]

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


@pytest.fixture
def make_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Make servers, each in a directory of its own; they are ended, and shown where the test failed."""
    made: list[Server] = []

    def make(app: str = HELLO, **options: Any) -> Server:
        directory = tmp_path / f"server{len(made)}"
        directory.mkdir()
        made.append(Server(directory, app, **options))
        return made[-1]

    yield make
    for server in made:
        server.end()
        print(f"--- {server.log_path} ---\n{server.log}")  # pytest shows it on failure only


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A server with the hello app, not started."""
    return make_server()


@pytest.fixture
def connect() -> Iterator[Callable[..., Connection]]:
    """Make raw connections; they are closed at the end."""
    made: list[Connection] = []

    def make(address: int | str, **options: Any) -> Connection:
        made.append(Connection(address, **options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    """An authority whose certificate for localhost is beside the servers' directories."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    """For clients that trust it."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture
def asked(make_server: Callable[..., Server]) -> Server:
    """A server with the app that answers questions (`tests.integration.asking`), not started."""
    from tests.integration.asking import ASK

    return make_server(ASK)


@pytest.fixture
def ending() -> Iterator[list[int]]:
    """Arbiters that are no children of the test: they are ended after it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if not gone(pid):
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                process.kill()
