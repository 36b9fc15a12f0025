"""The arbiter's loop, its reaping, its deployment in force, its end."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn import util
from gunicorn.errors import HaltServer

from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.system import System
from multicore_server.fleet import events as ev
from tests.support.threads import running
from tests.unit.arbiter_itself.started import Application, said, turn
from tests.unit.shell import fault

# --- the loop ---


def test_a_signal_wakes_the_loop(made: Arbiter) -> None:
    made.signal(signal.SIGHUP, None)
    made._deadline = time.monotonic() + 60.0
    made.inspection.due = made._deadline
    began = time.monotonic()
    assert made.wait_for_signals() == [signal.SIGHUP]
    assert time.monotonic() - began < 5.0


def test_a_flood_of_signals_does_not_block_the_handler(made: Arbiter) -> None:
    for _ in range(100_000):
        made.signal(signal.SIGTTIN, None)
    assert len(turn(made)) == 100_000


def test_a_callback_that_fails_costs_one_line_a_minute(made: Arbiter) -> None:
    def fail() -> None:
        raise RuntimeError("a mistake of ours")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        made.context.listen_to(ours, fail)
        theirs.send(b"x")
        for _ in range(3):
            turn(made)
        made.context.stop_listening_to(ours)
        made.context.stop_listening_to(ours)
    assert len(said(made, "a message from a child could not be handled; the arbiter keeps running")) == 1


@pytest.mark.parametrize(
    ("owner", "method", "said_of"),
    [
        ("inspection", "inspect", "the inspection"),
        ("monitor", "tick", "the monitor"),
        ("reloader", "tick", "the reload"),
        ("vitals", "sample", "the arbiter's own figures"),
        ("orphans", "tick", "the processes that dead workers left"),
        ("rotation", "tick", "the size of the logs"),
        ("worker_processes", "hear_all", "a message from a worker"),
        ("fleet", "tick", "a decision"),
        ("publisher", "record", "a decision"),
        ("publisher", "publish", "the report"),
    ],
)
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "no descriptors"), MemoryError()], ids=repr)
def test_a_periodic_part_that_fails_does_not_end_the_server(
    made: Arbiter, owner: str, method: str, said_of: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(getattr(made, owner), method, fail)
    monkeypatch.setattr(made.worker_processes, "fork", lambda fork: None)
    for _ in range(3):
        made._changed = True
        made.manage_workers()
    assert len(said(made, f"{said_of} could not be handled")) == 1


def test_an_action_that_fails_does_not_keep_the_others(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fail(fork: ev.Fork) -> None:
        asked.append(fork.instance)
        raise MemoryError

    monkeypatch.setattr(made.worker_processes, "fork", fail)
    made.manage_workers()
    assert asked == [0, 1]
    assert len(said(made, "the action Fork could not be handled")) == 1


def test_a_wait_that_fails_costs_its_turn(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timeout: float) -> None:
        raise MemoryError

    monkeypatch.setattr(made.context.selector, "select", fail)
    made.signal(signal.SIGHUP, None)
    assert turn(made) == [signal.SIGHUP]
    assert len(said(made, "an event could not be handled")) == 1


def test_a_child_whose_end_fails_does_not_go_on_as_an_arbiter(made: Arbiter) -> None:
    child = os.fork()
    if child == 0:
        with made.guarded("the action Fork"):
            raise MemoryError
        os._exit(0)  # it went on
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_the_threads_of_a_preloaded_app_are_no_error_of_a_fork() -> None:
    ended = threading.Event()
    with running(ended.wait, end=ended.set), warnings.catch_warnings():
        warnings.simplefilter("error")
        child = System().fork()
        if child == 0:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_line_that_cannot_be_logged_costs_nothing_else(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(made.log, "exception", fail)
    with made.guarded("it"):
        raise MemoryError


def test_an_arbiter_that_was_paused_forgives(made: Arbiter) -> None:
    turn(made)
    made._lateness._expected -= 60.0
    turn(made)
    (line,) = said(made, "was paused or starved for 60")
    assert line.endswith("giving everyone more time")


def test_a_pause_between_reading_and_judging_is_noticed_before_anybody_is_judged(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.worker_processes, "fork", lambda fork: None)
    turn(made)
    order: list[str] = []
    monkeypatch.setattr(made, "_forgive", lambda late: order.append("forgive") if late else None)

    def judge(_: float) -> tuple[list[ev.Action], float | None]:
        order.append("judge")
        return [], None

    monkeypatch.setattr(made.fleet, "tick", judge)
    made._lateness._expected -= 60.0
    made.manage_workers()
    assert order == ["forgive", "judge"]


def test_the_fleet_forks_through_the_arbiter(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[ev.Fork] = []
    monkeypatch.setattr(made.worker_processes, "fork", forks.append)
    made.manage_workers()
    assert [(fork.instance, fork.generation) for fork in forks] == [(0, 1), (1, 1)]
    assert made._deployment_for(forks[0]).listeners is made.LISTENERS


# --- reaping ---


def test_every_kind_of_child_is_reaped(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = iter([(11, 0), (12, 0), (13, 256), (14, 0), (15, 0)])
    gone: list[Any] = []

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        return next(ended, (0, 0))

    monkeypatch.setattr(os, "waitpid", waitpid)
    monkeypatch.setattr(made.worker_processes, "reaped", lambda worker, status: gone.append((worker, status)))
    monkeypatch.setattr(made.monitor, "reaped", lambda status: gone.append(("monitor", status)))
    worker: Any = SimpleNamespace(identity="a worker")
    made.WORKERS[11] = worker
    made.monitor.pid, made.reexec_pid, made.dirty_arbiter_pid = 12, 13, 14
    made.reap_workers()
    assert gone == [(worker, 0), ("monitor", 0)]
    assert (made.reexec_pid, made.dirty_arbiter_pid, made.WORKERS) == (0, 0, {})
    assert said(made, "the arbiter that USR2 started has exited (pid=13)")
    assert said(made, "reaped a child that is not a worker (pid=15)")
    made.monitor.pid = 0


def test_what_dead_workers_leave_is_seen_when_all_are_reaped_and_before_hooks(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = iter([(11, 0), (12, 0), (13, 0), (0, 0), (0, 0)])
    steps: list[Any] = []

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        steps.append(found := next(ended))
        return found

    monkeypatch.setattr(os, "waitpid", waitpid)
    monkeypatch.setattr(
        made.worker_processes, "reaped", lambda worker, _: steps.append(f"{worker.identity}'s hook")
    )
    monkeypatch.setattr(made.orphans, "look", steps.append)
    for pid in (11, 12):
        worker: Any = SimpleNamespace(identity=f"worker {pid}")
        made.WORKERS[pid] = worker
    made.reap_workers()
    looked = "worker 11 and 1 more"
    assert steps[:4] == [(11, 0), (12, 0), (13, 0), (0, 0)]
    assert steps[4:] == [looked, "worker 11's hook", "worker 12's hook", (0, 0)]


def test_what_usr2s_arbiter_leaves_is_no_workers(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, calls = iter([(13, 0)]), []
    monkeypatch.setattr(os, "waitpid", lambda pid, options: next(ended, (0, 0)))
    monkeypatch.setattr(made.orphans, "spare", lambda: calls.append("spare"))
    made.reexec_pid = 13
    made.reap_workers()
    assert calls == ["spare"]


def test_an_end_that_cannot_be_handled_does_not_end_the_server(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = iter([(11, 0), (12, 0)])

    def fail(*_: Any) -> None:
        raise fault(errno.EIO)

    monkeypatch.setattr(os, "waitpid", lambda pid, options: next(ended, (0, 0)))
    monkeypatch.setattr(made.worker_processes, "reaped", fail)
    worker: Any = SimpleNamespace(identity="a worker")
    made.WORKERS.update({11: worker, 12: worker})
    made.reap_workers()
    assert made.WORKERS == {}
    assert len(said(made, "the exit of a child could not be handled")) == 1


def test_without_children_there_is_nothing_to_reap(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    def waitpid(pid: int, options: int) -> tuple[int, int]:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", waitpid)
    made.reap_workers()


# --- a deployment in force ---


def test_a_deployment_is_installed_and_can_be_put_back(made: Arbiter, tmp_path: Path) -> None:
    old = made.in_force()
    application = Application(bind=str(old.cfg.bind[0]), pidfile=str(tmp_path / "other"), proc_name="new")
    new = Deployment(application, application.cfg, made.settings, list(old.listeners))
    made._install(new, old)
    assert made.in_force().cfg is new.cfg
    assert (tmp_path / "other").exists()
    assert not (tmp_path / "pid").exists()
    made._install(old, new)
    assert made.in_force().cfg is old.cfg
    assert (tmp_path / "pid").exists()


def test_the_monitors_process_closes_listeners_and_ignores_what_is_the_arbiters(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "set_owner_process", lambda *_, **__: None)
    monkeypatch.setattr(util, "_setproctitle", lambda _: None)
    try:
        made._become_monitor()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert made.LISTENERS[0].sock is None
    finally:
        made.LISTENERS = []


# --- the end ---


def test_the_listeners_are_closed_and_nobody_hands_connections_over(made: Arbiter) -> None:
    listener = made.LISTENERS[0]
    made._close_listeners(ev.CloseListeners())
    assert made.LISTENERS == []
    assert listener.sock is None


@pytest.mark.parametrize(
    ("halt", "ends"),
    [(ev.Halt(0, None), StopIteration), (ev.Halt(3, "why"), HaltServer), (ev.Halt(0, "stopped"), HaltServer)],
)
def test_how_it_ends(made: Arbiter, halt: ev.Halt, ends: type[Exception]) -> None:
    with pytest.raises(ends):
        made._halt(halt)
