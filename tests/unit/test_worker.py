"""A worker from its boot to its end, in this process: what it tells the arbiter, what signals do."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.errors import AppImportError
from gunicorn.glogging import Logger
from uvicorn.protocols.http import h11_impl, httptools_impl

from multicore_server import cluster
from multicore_server.connections.handover import Handover
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.messages import LastWords, RetireRequest, WorkerReady
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.machine import memory
from multicore_server.metrics.app import values as app_values
from multicore_server.settings.table import Settings
from multicore_server.worker import worker as module
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.lifeline import Lifeline
from multicore_server.worker.worker import Worker

PATIENCE = 10.0  # seconds
SIGNALS = [*Worker.SIGNALS, signal.SIGTTIN, signal.SIGTTOU]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Hired:
    """A worker as the arbiter makes it, and the arbiter's end of its channel."""

    def __init__(self, app: Any = hello, **settings: Any) -> None:
        cfg = Config()
        for name, value in {"keepalive": 5, "graceful_timeout": 2, **settings}.items():
            cfg.set(name, value)
        self.hooks: list[str] = []
        cfg.set("worker_int", lambda worker: self.hooks.append("int"))
        cfg.set("worker_abort", lambda worker: self.hooks.append("abort"))
        self.log = Logger(cfg)
        self.loaded = SimpleNamespace(app_uri="site:app", wsgi=lambda: app)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.worker = Worker(1, os.getpid(), [self.listener], self.loaded, 15, cfg, self.log)
        self.handover = Handover.make(Scoreboard(1), 1)
        self.handover.scoreboard.publish(frozenset({0}))
        self.lifeline, self.writer = os.pipe()
        self.channel = WorkerChannel()
        self.row = self.handover.scoreboard.row(0)
        self.worker.context = WorkerContext(
            0, 1, 0, self.row, self.channel, self.lifeline, Settings(workers=1), self.handover, ""
        )
        self.worker.pid = os.getpid()
        self.worker.PIPE = list(os.pipe())

    def heard(self) -> list[Any]:
        return list(self.channel.received())

    def close(self) -> None:
        self.channel.close()
        self.worker.tmp.close()
        self.listener.close()
        for end in (end for pair in self.handover.inboxes._pairs for end in pair):
            end.close()
        for descriptor in (self.handover.lock, self.lifeline, self.writer, *self.worker.PIPE):
            try:
                os.close(descriptor)
            except OSError:
                continue


Hire = Callable[..., Hired]


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hire]:
    """What a worker changes in its process is put back."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    loggers = [logging.getLogger(name) for name in ("gunicorn.error", "gunicorn.access", "uvicorn.error")]
    attributes = ("handlers", "level", "propagate", "parent", "disabled")
    before = [{name: getattr(logger, name) for name in attributes} for logger in loggers]
    for host in (h11_impl, httptools_impl):
        monkeypatch.setattr(host, "RequestResponseCycle", host.RequestResponseCycle)
    for owner, name in ((cluster, "instance"), (cluster, "_on_ready")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(app_values, "take_row", lambda number: None)
    monkeypatch.setattr(app_values, "open_files", lambda: None)
    monkeypatch.setenv("MULTICORE_INSTANCE", "")
    monkeypatch.setattr(Lifeline, "watch", lambda self: None)  # it would end this process
    made: list[Hired] = []
    signal.set_wakeup_fd(-1)  # another test's loop may have left one that is closed

    def hire(app: Any = hello, **settings: Any) -> Hired:
        made.append(Hired(app, **settings))
        return made[-1]

    yield hire
    signal.set_wakeup_fd(-1)
    for hired in made:
        hired.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for logger, values in zip(loggers, before, strict=True):
        for name, value in values.items():
            setattr(logger, name, value)
    faulthandler.enable()


# --- boot


def booted(hired: Hired, exc: BaseException) -> int:
    """The status of a boot in which this is raised."""

    def post_fork() -> None:
        raise exc

    with pytest.raises(SystemExit) as end:
        hired.worker.boot(post_fork)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (ValueError("a bad value"), "a bad value"),
        (RuntimeError("no database"), "RuntimeError: no database"),
        (SystemExit(7), "something ended the process (sys.exit(7))"),
    ],
)
def test_why_a_boot_failed_is_told(hire: Hire, exc: BaseException, words: str) -> None:
    hired = hire()
    assert booted(hired, exc) == Arbiter.WORKER_BOOT_ERROR
    (heard,) = hired.heard()
    assert isinstance(heard, LastWords)
    assert heard.words == words


def test_why_the_app_could_not_be_loaded_is_told_in_its_own_words(hire: Hire) -> None:
    hired = hire()

    def load() -> Any:
        raise AppImportError("Failed to find attribute 'app' in 'site'.")

    hired.loaded.wsgi = load
    hired.worker.init_process = hired.worker.load_wsgi
    with pytest.raises(SystemExit):
        hired.worker.boot(lambda: None)
    (heard,) = hired.heard()
    assert (
        heard.words == "site:app: Failed to find attribute 'app' in 'site'.; check the name after the colon"
    )


def test_a_worker_that_was_ready_fails_in_the_log(hire: Hire, caplog: pytest.LogCaptureFixture) -> None:
    hired = hire()
    hired.worker.ready = True
    hired.log.error_log.propagate = True
    assert booted(hired, RuntimeError("later")) == 1
    assert hired.heard() == []
    assert "failed" in caplog.text


def test_an_end_by_the_apps_own_exit_keeps_its_status(hire: Hire) -> None:
    hired = hire()
    hired.worker.ready = True
    assert booted(hired, SystemExit(5)) == 5
    assert hired.heard() == []


# --- serving


def test_it_serves_until_term_and_tells_the_arbiter(hire: Hire) -> None:
    hired = hire()
    got: list[bytes] = []

    def client() -> None:
        with socket.create_connection(hired.listener.getsockname(), timeout=PATIENCE) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            while data := connection.recv(4096):
                got.append(data)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    hired.worker.wsgi = hello
    hired.worker.init_signals()
    asking = threading.Thread(target=client)
    asking.start()
    hired.worker.run()
    asking.join()
    assert b"".join(got).endswith(b"ok")
    assert hired.heard() == [WorkerReady("asgi3"), RetireRequest("manual", draining=True)]
    assert hired.row[Item.HEARTBEAT] > 0
    assert hired.hooks == []
    ending = {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    assert ending == {signal.SIG_IGN}, "nothing kills a worker that ends"


def test_int_ends_it_quickly_by_way_of_the_hook(hire: Hire) -> None:
    hired = hire()
    hired.worker.on_signal(signal.SIGINT)
    assert hired.hooks == ["int"]
    assert not hired.worker.alive


def test_a_lifespan_that_fails_is_a_failed_boot(hire: Hire, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    caplog.set_level(logging.CRITICAL, "uvicorn.error")
    hired = hire(fails)
    hired.worker.wsgi = fails
    hired.worker.init_signals()
    with pytest.raises(SystemExit) as end:
        hired.worker.run()
    assert end.value.code == Arbiter.WORKER_BOOT_ERROR
    (heard,) = hired.heard()
    assert heard.words == "the app's lifespan startup failed (see its traceback)"


def test_after_max_requests_it_asks_once_to_be_replaced(hire: Hire) -> None:
    hired = hire(max_requests=2)
    state = SimpleNamespace(total_requests=1)
    hired.worker.server = SimpleNamespace(server_state=state)  # type: ignore[assignment]
    hired.worker.on_answered()
    assert hired.heard() == []
    state.total_requests = 2
    for _ in range(3):
        hired.worker.on_answered()
    assert hired.heard() == [RetireRequest("max_requests", draining=False)]


def test_ready_may_be_said_before_there_is_a_server(hire: Hire) -> None:
    hired = hire()
    hired.worker.on_app_ready()
    assert not hired.worker.waits_for_app
    told: list[bool] = []
    hired.worker.server = SimpleNamespace(app_is_ready=lambda: told.append(True))  # type: ignore[assignment]
    hired.worker.on_app_ready()
    assert told == [True]


# --- the heartbeat


def test_memory_is_measured_seldom_and_above_a_limit_often(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def uss() -> int:
        measured.append(5)
        return 5

    monkeypatch.setattr(memory, "uss", uss)
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.0)
    hired = hire()
    for _ in range(3):
        hired.worker.beat()
    assert len(measured) == 1
    assert hired.row[Item.UNIQUE_MEMORY] == 5
    hired.row[Item.MEMORY_LIMIT] = 1
    hired.worker.beat()
    assert len(measured) == 2
    assert hired.row[Item.CPU_SECONDS] > 0


def test_without_descriptors_memory_is_measured_later(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [OSError(errno.EMFILE, "Too many open files")]

    def uss() -> int:
        if faults:
            raise faults.pop()
        return 5

    monkeypatch.setattr(memory, "uss", uss)
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.0)
    monkeypatch.setattr(module, "MEMORY_INTERVAL", 0.0)
    hired = hire()
    hired.worker.beat()
    assert hired.row[Item.UNIQUE_MEMORY] == 0
    hired.worker.beat()
    assert hired.row[Item.UNIQUE_MEMORY] == 5


# --- signals


def test_signals_of_the_group_are_ignored_and_abort_ends_it_for_sure(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hired = hire()
    hired.worker.leave = lambda: hired.hooks.append("exit")
    hired.worker.init_signals()
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU):
        os.kill(os.getpid(), number)
    assert faulthandler.is_enabled()
    handler: Any = signal.getsignal(signal.SIGABRT)
    handler(signal.SIGABRT, None)
    assert hired.hooks == ["abort", "exit"]
    assert ended == [1]


def test_stacks_go_to_the_first_stream_that_has_a_descriptor(hire: Hire, tmp_path: Path) -> None:
    hired = hire()
    with (tmp_path / "log").open("w") as stream:
        hired.log.error_log.handlers = [
            logging.NullHandler(),
            logging.StreamHandler(io.StringIO()),
            logging.StreamHandler(stream),
        ]
        hired.worker.init_signals()
        faulthandler.dump_traceback(stream)
        hired.log.error_log.handlers = [logging.StreamHandler(io.StringIO())]
        hired.worker.init_signals()
    assert faulthandler.is_enabled()


def test_an_end_in_any_case_comes_from_a_thread(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(module, "END_GRACE", 0.01)
    hire().worker.end_in_any_case()
    assert ended.wait(PATIENCE)


# --- the arbiter's end, the reloader


class Stoppable:
    """In a server's place."""

    def __init__(self, stopped: list[bool]) -> None:
        self.stopped = stopped

    def stop(self, *, quick: bool = False) -> None:
        self.stopped.append(quick)


def test_a_worker_that_serves_drains_when_its_arbiter_is_gone(hire: Hire) -> None:
    hired = hire()
    stopped: list[bool] = []
    hired.worker.server = Stoppable(stopped)  # type: ignore[assignment]
    ended: list[int] = []
    hired.worker._lifeline = Lifeline(hired.lifeline, "instance=0", 0.0, ended.append)
    threading.Thread(target=hired.worker._lifeline._wait).start()

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())
        os.close(hired.writer)
        while not (stopped and ended):
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert stopped == [False]


def test_each_change_of_a_source_file_is_told_once(hire: Hire, tmp_path: Path) -> None:
    hired = hire()
    hired.worker.reloader = SimpleNamespace(_callback=None)

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())
        changed = hired.worker.reloader._callback
        source = tmp_path / "app.py"
        source.write_text("")
        heard: list[Any] = []
        for _ in range(3):
            changed(str(source))
        while not heard:
            await asyncio.sleep(0.001)
            heard += hired.heard()
        source.unlink()
        changed(str(source))
        while len(heard) == 1:
            await asyncio.sleep(0.001)
            heard += hired.heard()
        assert heard == [RetireRequest("reload", draining=False)] * 2

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_the_metrics_path_is_outside_of_the_app(hire: Hire) -> None:
    hired = hire()
    assert hired.worker.surround(hello, "") is hello
    context = hired.worker.context
    settings = Settings(workers=1, metrics_path="/metrics")
    hired.worker.context = WorkerContext(
        0, 1, 0, hired.row, hired.channel, context.lifeline, settings, hired.handover, "monitor"
    )
    assert hired.worker.surround(hello, "/root").path == "/root/metrics"
