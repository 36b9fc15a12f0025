"""The arbiter's side of the monitor's process: it comes, it talks, it goes."""

from __future__ import annotations

import errno
import signal
from typing import Any

import pytest

from multicore_server.arbiter.monitor_process import FAREWELL, POLICY, SILENCE, START_WITHIN, MonitorProcess
from multicore_server.fleet import events as ev
from multicore_server.ipc.messages import Answer, ReloadCommand, ScaleCommand, decode, encode
from tests.unit import shell
from tests.unit.arbiter_monitor.watch import NOW, Watch
from tests.unit.shell import ChildExitError, fault


@pytest.mark.parametrize("fails", [False, True])
def test_signals_are_blocked_around_the_fork(watch: Watch, fails: bool) -> None:
    """One that came before the monitor had its handlers killed it, or was lost with the arbiter's."""
    watch.os.faults["fork"] = [fault(errno.EAGAIN)] * fails
    watch.tick(START_WITHIN)
    names = ("fork", "sigmask")
    assert [call for call in watch.os.calls if call[0] in names] == [
        ("sigmask", signal.SIG_BLOCK), ("fork",), ("sigmask", signal.SIG_UNBLOCK),
    ]  # fmt: skip


def test_the_monitor_starts_with_its_signals_blocked(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MonitorProcess, "_serve", lambda *_: 0)
    watch.os.child = True
    with pytest.raises(ChildExitError):
        watch.tick(START_WITHIN)
    assert ("sigmask", signal.SIG_UNBLOCK) not in watch.os.calls
    watch.monitor.pid = 0


def test_workers_have_the_cpus_for_themselves_first(watch: Watch) -> None:
    watch.tick()
    assert (watch.monitor.pid, watch.monitor.due) == (0, NOW + START_WITHIN)
    watch.tick(START_WITHIN)
    assert watch.monitor.pid == 101
    assert watch.monitor.due is None
    assert ("setpgid", 101, 101) in watch.os.calls


def test_a_monitor_that_could_not_be_heard_is_not_forked(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll_ctl(2) fails beyond max_user_watches."""

    def refuse(*_: Any) -> None:
        raise fault(errno.ENOSPC)

    monkeypatch.setattr(watch.monitor._context.selector, "register", refuse)
    assert watch.start() == 0
    assert watch.os.living == []
    assert len(watch.log.said("the monitor could not be forked")) == 1


@pytest.mark.parametrize("call", ["fork", "channel"])
def test_a_fork_that_fails_is_tried_again_later(watch: Watch, call: str) -> None:
    watch.os.faults[call] = [fault(errno.EAGAIN)]
    assert watch.start() == 0
    assert len(watch.log.said("the monitor could not be forked")) == 1
    assert watch.monitor.due == watch.os.now + POLICY.max_restart_delay
    watch.tick(POLICY.max_restart_delay)
    assert watch.monitor.pid


def test_commands_are_answered(watch: Watch) -> None:
    watch.start()
    end = watch.os.ends[-1]
    for command in (ScaleCommand(1, 3), ReloadCommand(2)):
        end.send(encode(command))
    watch.shell.select()
    assert watch.asked == [ScaleCommand(1, 3), ReloadCommand(2)]
    assert [decode(end.recv(1000), Answer).id for _ in range(2)] == [1, 2]


def test_garbage_of_the_monitor_costs_one_line(watch: Watch) -> None:
    watch.start()
    for garbage in (b"{", b"\0" * 100, b'["ScaleCommand", {"id": 1, "workers": null, "deadline": null}]'):
        watch.os.ends[-1].send(garbage)
    watch.os.ends[-1].send(encode(ReloadCommand(2)))
    watch.shell.select()
    assert watch.asked == [ReloadCommand(2)]
    assert len(watch.log.said("a message of monitor pid=")) == 1


def test_a_monitor_that_closes_its_channel_does_not_wake_the_loop_again(watch: Watch) -> None:
    watch.start()
    watch.os.ends[-1].close()
    assert watch.shell.select() == 1
    assert watch.shell.select() == 0


def test_a_monitor_that_crashes_comes_back_ever_more_slowly(watch: Watch) -> None:
    waits: list[float] = []
    for _ in range(4):
        pid = watch.start() if not waits else watch.monitor.pid
        watch.os.end(pid, 1 << 8)
        watch.reap(1 << 8)
        waits.append((watch.monitor.due or 0.0) - watch.os.now)
        watch.tick(waits[-1])
    assert waits[0] == 0.0
    assert waits[1] < waits[2] < waits[3]
    assert len(watch.log.said("exited (status 1); restarting it")) == 4


def test_a_hung_monitor_is_killed_once(watch: Watch) -> None:
    pid = watch.start()
    watch.beat()
    watch.tick(SILENCE)
    assert watch.os.sent() == []
    watch.os.living.append(pid)  # and it does not die at once
    watch.tick(1.0)
    watch.tick(1.0)
    assert watch.os.sent() == [(pid, "SIGKILL")]
    watch.os.living.remove(pid)


def test_a_pause_of_the_arbiter_is_not_the_monitors_silence(watch: Watch) -> None:
    pid = watch.start()
    watch.beat()
    watch.os.living.append(pid)
    watch.os.now += 600.0
    watch.monitor.forgive(watch.os.now)
    watch.tick(SILENCE)
    assert watch.os.sent() == []
    watch.tick(1.0)  # it does hang
    assert watch.os.sent() == [(pid, "SIGKILL")]
    watch.os.living.remove(pid)


def test_a_monitor_that_is_replaced_comes_back_at_once(watch: Watch) -> None:
    pid = watch.start()
    watch.monitor.replace()
    assert watch.os.sent() == [(pid, "SIGTERM")]
    watch.reap()
    assert watch.monitor.due == watch.os.now
    assert not watch.log.said("exited")
    watch.tick()
    assert watch.monitor.pid == pid + 1


def test_a_monitor_that_was_told_to_end_with_the_server_does_not_come_back(watch: Watch) -> None:
    """Whoever stops a server may tell its whole process group."""
    pid = watch.start()
    watch.shell.observe(ev.Stop(graceful=True))
    watch.os.end(pid, 0)
    watch.reap()
    watch.tick(100.0)
    assert watch.monitor.pid == 0
    assert not watch.log.said("exited")


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EPERM])
def test_a_monitor_that_cannot_be_told(watch: Watch, number: int) -> None:
    watch.start()
    watch.os.faults["kill"] = [fault(number)]
    watch.monitor.reopen_log()
    assert len(watch.log.said("cannot send SIGUSR1 to monitor")) == (number == errno.EPERM)


def test_the_end(watch: Watch) -> None:
    pid = watch.start()
    watch.monitor.end()
    assert watch.os.sent() == [(pid, "SIGTERM")]
    assert watch.os.ended == []


def test_a_monitor_that_does_not_end_is_killed(watch: Watch) -> None:
    pid = watch.start()
    watch.os.obeys_term = False
    watch.monitor.end()
    assert watch.os.sent() == [(pid, "SIGTERM"), (pid, "SIGKILL")]
    assert watch.os.now == pytest.approx(NOW + START_WITHIN + FAREWELL, abs=0.1)


def test_the_end_without_a_monitor(watch: Watch) -> None:
    watch.monitor.replace()
    watch.monitor.reopen_log()
    watch.monitor.end()
    assert watch.os.sent() == []


@pytest.mark.parametrize("fails", [None, PermissionError(1, "no setuid"), KeyboardInterrupt()])
def test_the_child_ends_whatever_happens(
    watch: Watch, fails: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.os.child = True
    watch.becoming_fails = fails
    monkeypatch.setattr(MonitorProcess, "_serve", lambda *_: 0)
    with pytest.raises(ChildExitError):
        watch.start()
    assert watch.os.calls[-1] == ("exit", 1 if fails else 0)
    assert ("close", shell.PIPE[1]) in watch.os.calls
    assert len(watch.log.said("failed")) == bool(fails)
    # The test goes on in what is the child.
    watch.monitor.pid = 0
