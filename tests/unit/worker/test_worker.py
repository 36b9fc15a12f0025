"""How a worker boots, serves and beats."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError

from multicore_server.ipc.messages import LastWords, RetireRequest, WorkerReady
from multicore_server.ipc.scoreboard import Item
from multicore_server.machine import memory
from multicore_server.worker import usage as module
from tests.unit.worker.hired import PATIENCE, Hire, Hired, hello

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
    assert heard.words == "site:app: Failed to find attribute 'app' in 'site'; check the name after the colon"


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


def test_memory_is_measured_less_often_where_resident_memory_does_not_change(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, resident = [0], [100]

    def uss() -> int:
        measured[0] += 1
        return 5

    monkeypatch.setattr(memory, "uss", uss)
    monkeypatch.setattr(memory, "rss", lambda _: resident[0])
    monkeypatch.setattr(module, "LOOK_INTERVAL", 0.0)
    monkeypatch.setattr(module, "MEMORY_INTERVAL", 0.0)
    hired = hire()
    for _ in range(3):
        hired.worker.beat()
    assert measured == [1]
    resident[0] = 101
    hired.worker.beat()
    assert measured == [2]
    monkeypatch.setattr(module, "STEADY_INTERVAL", 0.0)
    hired.worker.beat()
    assert measured == [3]


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
