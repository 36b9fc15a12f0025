"""The arbiter itself: how it starts and refuses to, its loop, its signals, its reaping, its end."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.errors import HaltServer

from multicore_server.arbiter import arbiter as module
from multicore_server.arbiter import listeners, systemd, takeover
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.deployment import Deployment
from multicore_server.fleet import events as ev
from tests.unit.shell import Log, fault


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """An app that is never loaded: no worker is forked in these tests."""

    multicore_options: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        self.given = settings
        self.multicore_options = {"workers": 2, "metrics_bind": "none"}
        self.app_uri = "app:app"
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("worker_class", "multicore_server.Worker")
        self.cfg.set("logger_class", Log)
        for name, value in self.given.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        raise AssertionError


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def made(free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arbiter]:
    """An arbiter that has started, in this process, with its signal handlers put back afterwards."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(module, "raise_descriptor_limit", lambda: None)
    before = {name: signal.getsignal(name) for name in gunicorn.arbiter.Arbiter.SIGNALS}
    before[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD)
    found = gunicorn.arbiter.Arbiter(
        Application(bind=f"127.0.0.1:{free_port}", pidfile=str(tmp_path / "pid"))
    )
    found.WORKERS = {}
    try:
        found.start()
        yield found
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
        if isinstance(found, Arbiter):
            end(found)


def end(found: Arbiter) -> None:
    found.monitor.addresses.end()
    found._close_loop()
    for descriptor in (found.context.lifeline.reader, found.context.lifeline.writer):
        os.close(descriptor)
    found._clean_up()
    for pair in found.context.handover.inboxes._pairs:
        for each in pair:
            each.close()
    os.close(found.context.handover.lock)


def said(found: Arbiter, text: str) -> list[str]:
    log: Log = found.log
    return log.said(text)


def turn(found: Arbiter, timeout: float = 0.0) -> list[int]:
    """One turn of the loop, without waiting."""
    found._deadline = 0.0
    signals: list[int] = found.wait_for_signals()
    return signals


# --- start ---


def test_gunicorns_arbiter_becomes_ours_before_anything_is_bound(made: Arbiter) -> None:
    assert type(made) is Arbiter
    assert made.fleet.workers == 2
    assert (Path(made.cfg.pidfile)).exists()
    assert len(made.LISTENERS) == 1


def test_other_worker_classes_are_left_alone() -> None:
    started: list[Any] = []
    start = takeover._taking_over(started.append)
    other = SimpleNamespace(worker_class=object)
    start(other)
    assert started == [other]


# gunicorn drops a socket that cannot be bound, unclosed.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ({"multicore": {"workers": "many"}}, "workers: 'many'"),
        ({"bind": "taken"}, "the address is in use"),
        ({"pidfile": "/no/such/directory/pid"}, "cannot start"),
        ({"certfile": "/no/such/file"}, "certfile: '/no/such/file' does not exist"),
        ({"exchange": fault(errno.EMFILE)}, "cannot start: [Errno 24]"),
    ],
)
def test_a_mistake_ends_the_start_in_one_line_with_nothing_left(
    trouble: dict[str, Any], line: str, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(listeners, "PATIENCE", 0.0)
    monkeypatch.setattr(gunicorn.arbiter.Arbiter, "init_signals", lambda self: None)
    multicore = trouble.pop("multicore", {})
    if exchange := trouble.pop("exchange", None):

        def refuse(*_: Any) -> None:
            raise exchange

        monkeypatch.setattr("multicore_server.connections.handover.Handover.make", refuse)
    taken = socket.create_server(("127.0.0.1", free_port))
    settings = {
        "bind": f"unix:{tmp_path}/s",
        "pidfile": str(tmp_path / "pid"),
        "errorlog": str(tmp_path / "log"),
    }
    settings |= trouble
    if settings["bind"] == "taken":
        settings["bind"] = f"127.0.0.1:{free_port}"
    application = Application(**settings)
    application.multicore_options |= multicore
    found = gunicorn.arbiter.Arbiter(application)
    log: Log = found.log
    with taken, pytest.raises(SystemExit) as ended:
        found.start()
    assert ended.value.code == 1
    assert len(log.said("ERROR")) == 1
    assert line in log.said("ERROR")[0]
    assert line in capsys.readouterr().err
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "s").exists()
    del ended, found, application
    gc.collect()


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
    assert len(said(made, "a message from a child could not be handled; the arbiter goes on")) == 1


@pytest.mark.parametrize(
    ("owner", "method", "said_of"),
    [
        ("inspection", "inspect", "the inspection"),
        ("monitor", "tick", "the monitor"),
        ("reloader", "tick", "the reload"),
        ("vitals", "sample", "the arbiter's own figures"),
    ],
)
def test_a_periodic_part_that_fails_does_not_end_the_server(
    made: Arbiter, owner: str, method: str, said_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(getattr(made, owner), method, fail)
    monkeypatch.setattr(made.worker_processes, "fork", lambda fork: None)
    for _ in range(3):
        made.manage_workers()
    assert len(said(made, f"{said_of} could not be handled")) == 1


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


# --- signals ---


def observed(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> list[ev.Observation]:
    found: list[ev.Observation] = []
    monkeypatch.setattr(made.fleet, "observe", lambda observation, now: found.append(observation))
    return found


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("handle_hup", ev.Reload()),
        ("handle_term", ev.Stop(graceful=True)),
        ("handle_int", ev.Stop(graceful=False)),
        ("handle_quit", ev.Stop(graceful=False)),
        ("handle_ttin", ev.Scale(3)),
        ("handle_ttou", ev.Scale(1)),
    ],
)
def test_signals_become_observations(
    made: Arbiter, handler: str, expected: ev.Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = observed(made, monkeypatch)
    getattr(made, handler)()
    assert found == [expected]


@pytest.mark.parametrize("daemon", [False, True])
def test_winch_is_for_daemons(made: Arbiter, daemon: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = observed(made, monkeypatch)
    made.cfg.set("daemon", daemon)
    made.handle_winch()
    assert found == ([ev.Scale(0)] if daemon else [])


def test_the_last_worker_is_not_scaled_away(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    made.fleet.observe(ev.Scale(1), 0.0)
    found = observed(made, monkeypatch)
    made.handle_ttou()
    assert found == []


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EPERM])
def test_a_signal_that_cannot_be_sent_ends_nothing(
    made: Arbiter, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arbiter of root's without CAP_KILL has workers of another user."""

    def refuse(*_: Any) -> None:
        raise fault(number)

    monkeypatch.setattr(os, "kill", refuse)
    made._send(ev.Signal(4711, "TERM"))
    made.WORKERS[4711] = worker = SimpleNamespace()  # type: ignore[assignment]  # not looked into
    made.handle_usr1()
    assert {4711: worker} == made.WORKERS
    made.WORKERS.clear()
    assert len(said(made, "pid=4711 cannot get SIGTERM: Operation not permitted")) == (number == errno.EPERM)


def test_usr2_that_cannot_be_carried_out_leaves_this_arbiter(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise fault(errno.ENOMEM)

    monkeypatch.setattr(os, "fork", refuse)
    made.reexec()
    assert said(made, "USR2: the new arbiter could not be started: [Errno 12]")
    made.systemd = True
    made.reexec()
    assert len(said(made, "USR2: the new arbiter")) == 2
    made.systemd = False


def test_the_service_manager_learns_who_took_over(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    monkeypatch.setattr(systemd, "notify", lambda state, log: states.append(state))
    made.maybe_promote_master()
    assert states == []
    monkeypatch.setenv("GUNICORN_PID", "1")
    made.master_pid = 2**22 + 1  # nobody's: the old arbiter has gone
    made.maybe_promote_master()
    assert states == [f"MAINPID={os.getpid()}"]


def test_a_pidfile_that_cannot_be_renamed_costs_a_line(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended the arbiter that USR2 had started, as soon as it was the only one."""

    def refuse(path: str) -> None:
        raise fault(errno.EROFS)

    monkeypatch.setattr(made.pidfile, "rename", refuse)
    monkeypatch.setenv("GUNICORN_PID", "1")
    made.master_pid = 2**22 + 1  # nobody's: the old arbiter has gone
    made.maybe_promote_master()
    made.maybe_promote_master()
    assert len(said(made, "the pidfile cannot be renamed: [Errno 30]")) == 1
    assert made.master_pid == 0


def test_a_dirty_arbiter_that_cannot_be_forked_costs_a_line(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise fault(errno.EAGAIN)

    monkeypatch.setattr(gunicorn.arbiter.Arbiter, "spawn_dirty_arbiter", refuse)
    made.cfg.set("dirty_workers", 1)
    made.cfg.set("dirty_apps", ["app:app"])
    for _ in range(2):
        made.manage_dirty_arbiter()
    assert len(said(made, "the dirty arbiter could not be handled")) == 1


# --- reaping ---


def test_every_kind_of_child_is_reaped(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = iter([(11, 0), (12, 0), (13, 256), (14, 0), (15, 0)])
    gone: list[Any] = []

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        return next(ended, (0, 0))

    monkeypatch.setattr(os, "waitpid", waitpid)
    monkeypatch.setattr(made.worker_processes, "reaped", lambda worker, status: gone.append((worker, status)))
    monkeypatch.setattr(made.monitor, "reaped", lambda status: gone.append(("monitor", status)))
    worker: Any = "a worker"
    made.WORKERS[11] = worker
    made.monitor.pid, made.reexec_pid, made.dirty_arbiter_pid = 12, 13, 14
    made.reap_workers()
    assert gone == [("a worker", 0), ("monitor", 0)]
    assert (made.reexec_pid, made.dirty_arbiter_pid, made.WORKERS) == (0, 0, {})
    assert said(made, "the arbiter that USR2 started has ended (pid=13)")
    assert said(made, "reaped a child that is no worker (pid=15)")
    made.monitor.pid = 0


def test_an_end_that_cannot_be_handled_does_not_end_the_server(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = iter([(11, 0), (12, 0)])

    def fail(*_: Any) -> None:
        raise fault(errno.EIO)

    monkeypatch.setattr(os, "waitpid", lambda pid, options: next(ended, (0, 0)))
    monkeypatch.setattr(made.worker_processes, "reaped", fail)
    worker: Any = "a worker"
    made.WORKERS.update({11: worker, 12: worker})
    made.reap_workers()
    assert made.WORKERS == {}
    assert len(said(made, "the end of a child could not be handled")) == 1


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
