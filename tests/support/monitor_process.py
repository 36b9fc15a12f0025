"""A monitor in a forked process of its own, with the test's process as its arbiter."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

import httpx

from multicore_server.ipc.mailboxes import Mailboxes
from multicore_server.ipc.messages import MAX_MESSAGE, Answer, Command, decode, encode
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.ipc.seqpacket import KIND
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.monitor.address import bind_command, bind_metrics
from multicore_server.monitor.guard import MonitorLimits
from multicore_server.monitor.process import MonitorContext, run
from tests.support.raw_client import Connection
from tests.support.reports import report
from tests.support.waiting import PATIENCE, wait_for

REQUESTS = 'multicore_http_requests_total{code="2xx",method="GET"} '


class Monitor:
    """It listens on TCP, on the unix socket of `metrics_path` and on a command socket. The options are the
    context's."""

    def __init__(
        self,
        directory: Path,
        *,
        app_metrics: Any = None,
        app_identifier: Any = str,
        hosts: Sequence[str] = (),
        **limits: Any,
    ) -> None:
        self.directory = directory
        self.log_path = directory / "monitor.log"
        self.unix = str(directory / "metrics.sock")
        self.commands = str(directory / "1.sock")
        self.scoreboard = Scoreboard(64)
        self._mailboxes = Mailboxes(64 * ROWS_PER_SLOT)
        self._requests = RequestTable(64 * ROWS_PER_SLOT)
        self.shared_report = SharedReport(2**20)
        self._listeners = [bind_metrics("127.0.0.1:0"), bind_metrics(f"unix:{self.unix}")]
        self._command_listener = bind_command(Path(self.commands))
        self.port: int = self._listeners[0].getsockname()[1]
        self._lifeline, self._alive = os.pipe()
        self.channel, self._channel = socket.socketpair(socket.AF_UNIX, KIND)
        self._channel.setblocking(False)
        self.channel.settimeout(PATIENCE)
        self._app = {"app_metrics": app_metrics, "app_identifier": app_identifier}
        self._limits = MonitorLimits(**limits)
        self._hosts = hosts
        self._connections: list[Connection] = []
        self.pid = self._fork()
        self.status: int | None = None

    def _fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(self._watch())
            except BaseException:  # noqa: BLE001 -- nothing may get out of here into pytest
                self.log_path.write_text(traceback.format_exc())
            finally:
                os._exit(70)
        return pid

    def _watch(self) -> int:
        os.close(self._alive)
        self.channel.close()
        log = logging.Logger("gunicorn.error")
        handler = logging.FileHandler(self.log_path)
        log.addHandler(handler)
        context = MonitorContext(
            scoreboard=self.scoreboard, requests=self._requests, shared_report=self.shared_report,
            listener=self._listeners[0], metrics_listener=self._listeners[1],
            command_listener=self._command_listener,
            lifeline=self._lifeline, channel=self._channel, hosts=frozenset(self._hosts), log=log,
            reopen_log=handler.close, mailboxes=self._mailboxes, limits=self._limits, **self._app,
        )  # fmt: skip
        return run(context)

    # --- the arbiter's part ---

    def publish(self, **changes: Any) -> None:
        self.shared_report.publish(json.dumps(report(**changes)).encode())
        self.scoreboard.publish(frozenset({0, 4}))

    def count(self, requests: int) -> None:
        self.scoreboard.row(0)[Item.REQUESTS + 1] = requests  # GET, 2xx

    def take(self) -> Command:
        """The next command."""
        command: Command = decode(self.channel.recv(MAX_MESSAGE), *get_args(Command))
        return command

    def answer(self, ok: bool, text: str) -> Command:
        """Take one command and answer it; the command."""
        command = self.take()
        self.channel.send(encode(Answer(command.id, ok, text)))
        return command

    @contextlib.contextmanager
    def answering(self, ok: bool, text: str) -> Iterator[list[Command]]:
        """Answer the next command while the test waits for the outcome; a list that it gets into."""
        commands: list[Command] = []
        thread = threading.Thread(target=lambda: commands.append(self.answer(ok, text)))
        thread.start()
        yield commands
        thread.join()

    def end_arbiter(self) -> None:
        os.close(self._alive)
        self._alive = -1

    # --- its clients ---

    def client(self, socket_path: str | None = None) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=socket_path, verify=False)  # loading certificates is slow
        return httpx.Client(
            transport=transport, base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE, trust_env=False
        )

    def get(self, path: str, **options: Any) -> httpx.Response:
        """One request over TCP, on a connection of its own."""
        with self.client() as client:
            return client.get(path, **options)

    def command(self, path: str, body: Any = None, method: str = "POST") -> httpx.Response:
        """One request over the command socket."""
        with self.client(self.commands) as client:
            return client.request(method, path, json=body)

    def connect(self, address: int | str | None = None, **options: Any) -> Connection:
        """A raw connection, over TCP where no path is given; it is closed at the end."""
        self._connections.append(Connection(self.port if address is None else address, **options))
        return self._connections[-1]

    # --- its end ---

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        def ended() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.status = os.waitstatus_to_exitcode(status) if pid else None
            return self.status is not None

        wait_for(ended, "the end of the monitor", timeout)
        assert self.status is not None
        return self.status

    def end(self) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait_exit()
        for connection in self._connections:
            connection.close()
        self.close_listeners()
        self.channel.close()
        self._channel.close()
        self._mailboxes.close()
        for fd in (self._lifeline, self._alive):
            if fd >= 0:
                os.close(fd)

    def close_listeners(self) -> None:
        for listener in (*self._listeners, self._command_listener):
            listener.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""


def seconds(began: float) -> float:
    return time.monotonic() - began


class SlowApp:
    """Stands for an app with very many metrics: a merge takes a while of computing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left_out = self.collisions = 0

    def collect(self, state: Any) -> list[Any]:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        return []


class BrokenApp(SlowApp):
    def collect(self, state: Any) -> list[Any]:
        raise OSError("no such directory")


def ending(connection: Connection) -> str:
    """How a connection ends, whatever came before it."""
    try:
        while connection.socket.recv(2**20):
            pass
    except ConnectionResetError:
        return "reset"
    return "closed"


MakeMonitor: TypeAlias = Callable[..., Monitor]
