"""Signals to the arbiter act at once, whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.apps import TROUBLED
from tests.support.processes import workers_of
from tests.support.server import Server
from tests.support.waiting import wait_for

ENDS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
AT_ONCE = 2.0  # seconds: generous for what takes a few hundredths
SLOW_BOOT = TROUBLED + "\nprint('BOOTING', flush=True); time.sleep(60)\n"


def signal_meanwhile(server: Server, *numbers: signal.Signals) -> None:
    """While the worker has a request in hand."""
    server.wait_logged("SLOW")
    for number in numbers:
        server.signal(number)
        server.wait_logged(f"Handling signal: {number.name[3:].lower()}|the arbiter is gone")


def idle(server: Server) -> None:
    server.start("-w", "2", ready=2)


def in_boot(server: Server) -> None:
    server.write("app.py", SLOW_BOOT)
    server.start("-w", "2")
    server.wait_logged("BOOTING", 2)


def in_a_reload(server: Server) -> None:
    server.start("-w", "2", ready=2)
    server.write("app.py", SLOW_BOOT)
    server.signal(signal.SIGHUP)
    server.wait_logged("BOOTING")


def in_backoff(server: Server) -> None:
    server.start("-w", "1", env={"MULTICORE_RESTART_DELAY": "60s"}, ready=1)
    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_logged("restarting in 60.00 s")


@pytest.mark.quiet
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
@pytest.mark.parametrize("get_there", [idle, in_boot, in_a_reload, in_backoff])
def test_the_end_is_at_hand_in_every_state(
    server: Server, get_there: Callable[[Server], None], number: signal.Signals
) -> None:
    get_there(server)
    workers = server.workers()
    server.signal(number)
    assert server.wait_exit(AT_ONCE) == 0
    assert not [pid for pid in workers if psutil.pid_exists(pid)]
    assert not server.logged(r"restarting at once|Traceback|\[CRITICAL\]")


@pytest.mark.quiet
def test_term_finishes_the_request_in_hand(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", ready=1)
    threading.Thread(target=signal_meanwhile, args=[server, signal.SIGTERM]).start()
    assert server.get("/slow?1").status_code == 200
    assert server.wait_exit(AT_ONCE) == 0


@pytest.mark.parametrize("first", [None, signal.SIGTERM], ids=["INT", "TERM, INT"])
def test_int_does_not_wait_for_the_request_in_hand(server: Server, first: signal.Signals | None) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", ready=1)

    numbers = [first, signal.SIGINT] if first else [signal.SIGINT]
    asked = time.monotonic()
    threading.Thread(target=signal_meanwhile, args=[server, *numbers]).start()
    with suppress(httpx.HTTPError):  # cut, or answered with 500
        assert server.get("/slow?60").status_code == 500
    assert server.wait_exit() == 0
    assert time.monotonic() - asked < 10  # of the 60 s of the request


def test_int_ends_even_a_worker_that_does_not_listen(server: Server) -> None:
    server.start("-w", "1", ready=1)
    os.kill(server.worker_of(0), signal.SIGSTOP)
    asked = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait_exit() == 0
    assert 1.5 < time.monotonic() - asked < 10  # of the 30 s of graceful_timeout
    assert server.logged("did not exit in time; killing it")


@pytest.mark.quiet
@pytest.mark.parametrize("get_there", [idle, in_boot])
def test_ctrl_c_goes_to_everyone_and_nobody_makes_a_fuss(
    server: Server, get_there: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = server.start
    gunicorn = [sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    monkeypatch.setattr(
        server, "start", lambda *args, **kw: start(*args, command=["setsid", *gunicorn], **kw)
    )
    get_there(server)
    os.killpg(server.pid, signal.SIGINT)
    assert server.wait_exit(AT_ONCE) == 0
    assert len(server.logged("started")) == 2
    assert not server.logged(r"Traceback|\[(WARNING|ERROR|CRITICAL)\]")


# --- the other signals ---


def test_usr1_reopens_the_logs_of_all(server: Server) -> None:
    log = server.directory / "error.log"
    server.start("-w", "2", "--error-logfile", str(log))
    wait_for(lambda: log.exists() and log.read_text().count("ready after") == 2, "two workers")
    rotated = log.rename(server.directory / "error.log.1")
    server.signal(signal.SIGUSR1)
    everyone = [server.pid, *server.workers()]

    def moved_over() -> bool:
        files = [{file.path for file in psutil.Process(pid).open_files()} for pid in everyone]
        return all(str(log) in opened and str(rotated) not in opened for opened in files)

    wait_for(moved_over, "everybody to write to the new file")


@pytest.fixture
def daemon(server: Server) -> Iterator[psutil.Process]:
    """An arbiter with --daemon, which is nobody's child."""
    server.start("-w", "2", "--daemon", "-p", "server.pid", "--error-logfile", str(server.log_path))
    server.wait_ready(2)
    process = psutil.Process(int((server.directory / "server.pid").read_text()))
    yield process
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        process.wait(10)


@pytest.mark.quiet
def test_winch_takes_a_daemons_workers_away_and_hup_brings_them_back(
    server: Server, daemon: psutil.Process
) -> None:
    daemon.send_signal(signal.SIGWINCH)
    wait_for(lambda: not workers_of(daemon.pid), "no workers")
    daemon.send_signal(signal.SIGHUP)
    server.wait_logged("gen=2 .* ready", 2)
    daemon.send_signal(signal.SIGTERM)
    wait_for(lambda: not is_running(daemon.pid), "the server's end", AT_ONCE)
    assert not (server.directory / "server.pid").exists()


def test_winch_at_a_terminal_is_a_window_that_changes(server: Server) -> None:
    server.start("-w", "1", ready=1)
    server.signal(signal.SIGWINCH)
    server.wait_logged("Handling signal: winch")
    assert server.get().status_code == 200


# --- no orphans ---


def test_workers_finish_and_end_when_their_arbiter_is_killed(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "2", ready=2)
    workers = server.workers()
    threading.Thread(target=signal_meanwhile, args=[server, signal.SIGKILL]).start()
    assert server.get("/slow?0.5").status_code == 200
    wait_for(lambda: not any(map(is_running, workers)), "the workers' end")
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # the request's connection is in TIME_WAIT
        probe.bind(("127.0.0.1", server.port))
    assert len(server.logged("the arbiter is gone; draining")) == 2


@pytest.mark.quiet
def test_workers_that_were_not_ready_end_with_their_arbiter(server: Server) -> None:
    server.write(
        "app.py", TROUBLED + "\nasync def startup(): print('STARTUP', flush=True); await asyncio.sleep(60)"
    )
    server.start("-w", "2")
    server.wait_logged("STARTUP", 2)
    workers = server.workers()
    server.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, workers)), "the workers' end", AT_ONCE)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie: orphans are reaped by whoever adopts them, if anyone."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_server_whose_starter_has_blocked_signals_hears_them(server: Server) -> None:
    """Workers would inherit the mask, and never hear TERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])
    try:
        server.start("-w", "2", ready=2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    server.ends_within(10)
