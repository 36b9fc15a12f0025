"""What signals do to the arbiter."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest

from multicore_server.arbiter import systemd
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.interruption import Interrupted
from multicore_server.fleet import events as ev
from tests.unit.arbiter_itself.started import said, turn
from tests.unit.shell import fault


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


@pytest.mark.parametrize("name", ["hup", "usr1", "usr2", "ttin", "ttou"])
def test_a_signal_that_cannot_be_handled_does_not_end_the_server(
    made: Arbiter, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    for part in ("observe", "kill_workers", "reexec"):
        monkeypatch.setattr(made, part, fail)
    getattr(made, f"handle_{name}")()
    assert len(said(made, f"handle_{name} could not be handled")) == 1


def test_the_order_to_end_is_not_lost(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(made, "observe", fail)
        made.handle_term()
    assert turn(made) == [signal.SIGTERM]
    found = observed(made, monkeypatch)
    made.handle_term()
    assert found == [ev.Stop(graceful=True)]


def within_the_handler(monkeypatch: pytest.MonkeyPatch, outer: signal.Signals, inner: signal.Signals) -> None:
    """Send the second signal where the handler of the first one has only begun."""
    real = os.getpid

    def getpid() -> int:
        monkeypatch.setattr(os, "getpid", real)
        os.kill(real(), inner)
        return real()

    monkeypatch.setattr(os, "getpid", getpid)
    signal.raise_signal(outer)


def test_an_exit_is_judged_after_an_order_to_end_of_the_same_moment(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C goes to the workers too."""
    within_the_handler(monkeypatch, signal.SIGINT, signal.SIGCHLD)
    assert turn(made) == [signal.SIGINT, signal.SIGCHLD]


def test_otherwise_signals_keep_their_order(made: Arbiter) -> None:
    """An arbiter whose successor has exited is asked for another one."""
    for number in (signal.SIGCHLD, signal.SIGUSR2):
        made.signal(number, None)
    assert turn(made) == [signal.SIGCHLD, signal.SIGUSR2]


@pytest.mark.parametrize(
    ("outer", "inner"), [(signal.SIGINT, signal.SIGCHLD), (signal.SIGHUP, signal.SIGTERM)]
)
def test_a_signal_interrupts_the_users_code_and_not_the_handler_of_another_signal(
    made: Arbiter, outer: signal.Signals, inner: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted), made.interruption.allowed():
        within_the_handler(monkeypatch, outer, inner)
    assert set(turn(made)) == {outer, inner}


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
    assert len(said(made, "cannot send SIGTERM to pid=4711: Operation not permitted")) == (
        number == errno.EPERM
    )


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
    calls: list[str] = []
    monkeypatch.setattr(systemd.service, "promoted", lambda: calls.append("promoted"))
    made.maybe_promote_master()
    assert calls == []
    monkeypatch.setenv("GUNICORN_PID", "1")
    made.master_pid = 2**22 + 1  # nobody's: the old arbiter has gone
    made.maybe_promote_master()
    assert calls == ["promoted"]


def test_it_is_promoted_before_it_obeys_a_signal(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """USR2 was ignored for up to a second after the end of the old arbiter: "Parent exists"."""
    monkeypatch.setenv("GUNICORN_PID", "1")
    made.master_pid = 2**22 + 1  # nobody's
    made.signal(signal.SIGUSR2, None)
    assert turn(made) == [signal.SIGUSR2]
    assert made.master_pid == 0


def test_with_a_successor_the_service_goes_on(made: Arbiter, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(systemd.service, "stopping", lambda: calls.append("stopping"))
    monkeypatch.setattr(systemd.service, "hand_over", calls.append)
    made.reexec_pid = 4711
    made.end(graceful=True)
    with pytest.raises(StopIteration):
        made._halt(ev.Halt(0, None))
    assert calls == [4711]
    made.reexec_pid = 0
    made.end(graceful=True)
    assert calls == [4711, "stopping"]


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
