"""The arbiter's side of the monitor: its process, its addresses, and what is published for it."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter import publishing
from multicore_server.arbiter.forked_call import LIMIT, ForkedCall
from multicore_server.arbiter.monitor_addresses import REST, RETRY, Ask, MonitorAddresses
from multicore_server.arbiter.monitor_process import FAREWELL, POLICY, SILENCE, START_WITHIN, MonitorProcess
from multicore_server.arbiter.publishing import Publisher
from multicore_server.fleet import events as ev
from multicore_server.ipc.messages import Answer, Command, ReloadCommand, ScaleCommand, decode, encode
from multicore_server.ipc.report import Report
from multicore_server.ipc.scoreboard import Head
from multicore_server.monitor import address
from multicore_server.settings.table import TABLE, Settings
from tests.unit import shell
from tests.unit.shell import ChildExitError, Shell, fault

NOW = 1000.0  # the simulated clock at the start


def asking(made: Shell) -> Ask:
    return lambda answer, done: ForkedCall(made.context, answer, done, lambda: None)


def settings(metrics_bind: str = "", **changes: Any) -> Settings:
    return Settings(workers=2, metrics_bind=metrics_bind, **changes)


class Watch:
    """A monitor in a simulated shell."""

    def __init__(self, made: Shell) -> None:
        self.shell, self.os, self.log = made, made.os, made.log
        self.asked: list[Command] = []
        self.became = 0
        self.becoming_fails: BaseException | None = None
        system = made.context.system
        self.addresses = MonitorAddresses(made.log, system, settings(), lambda: True, asking(made))
        report: Any = "the report"
        self.monitor = MonitorProcess(made.context, self.addresses, report, self._carry_out, self._become)

    def _carry_out(self, command: Command) -> Answer:
        self.asked.append(command)
        return Answer(command.id, True, "done")

    def _become(self) -> None:
        self.became += 1
        if self.becoming_fails:
            raise self.becoming_fails

    def tick(self, later: float = 0.0) -> None:
        self.os.now += later
        self.monitor.tick(self.os.now)

    def start(self) -> int:
        self.tick(START_WITHIN)
        return self.monitor.pid

    def beat(self) -> None:
        self.shell.context.scoreboard.head[Head.MONITOR_HEARTBEAT] = self.os.now

    def reap(self, status: int = 0) -> None:
        pid, _ = self.os.waitpid(self.monitor.pid, 0)
        assert pid
        self.monitor.reaped(status)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with shell.shell() as made:
        found = Watch(made)
        yield found
        found.monitor._hang_up()
        found.addresses.end()


# --- the process ---


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
    # The real one would leave its event loop, and signal.set_wakeup_fd(), in this process.
    monkeypatch.setattr(watch.monitor, "_serve", lambda channel: 0)
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
    for garbage in (b"{", b"\0" * 100, b'["ScaleCommand", {"id": 1, "workers": null}]'):
        watch.os.ends[-1].send(garbage)
    watch.os.ends[-1].send(encode(ReloadCommand(2)))
    watch.shell.select()
    assert watch.asked == [ReloadCommand(2)]
    assert len(watch.log.said("has sent something that is dropped")) == 1


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
    assert len(watch.log.said("has ended (status 1); starting it again")) == 4


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
    assert not watch.log.said("has ended")
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
    assert not watch.log.said("has ended")


@pytest.mark.parametrize("number", [errno.ESRCH, errno.EPERM])
def test_a_monitor_that_cannot_be_told(watch: Watch, number: int) -> None:
    watch.start()
    watch.os.faults["kill"] = [fault(number)]
    watch.monitor.reopen_log()
    assert len(watch.log.said("cannot get SIGUSR1: [Errno 1]")) == (number == errno.EPERM)


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


# --- addresses ---


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def addresses(made: Shell, metrics_bind: str, speaks: bool = True) -> tuple[MonitorAddresses, list[str]]:
    found = MonitorAddresses(
        made.log, made.context.system, settings(metrics_bind), lambda: speaks, asking(made)
    )
    changes: list[str] = []
    found.on_change = lambda: changes.append(str(found.listener and found.listener.getsockname()))
    return found, changes


def test_an_address_is_bound_when_it_is_due(watch: Watch, free_port: int) -> None:
    found, changes = addresses(watch.shell, f"127.0.0.1:{free_port}")
    found.bind_if_due(NOW)
    assert (found.due, len(changes)) == (None, 1)
    assert found.listener is not None
    found.configure(settings(metrics_bind=f"127.0.0.1:{free_port}"))
    assert len(changes) == 1
    found.configure(settings())
    assert found.listener is None
    assert (found.due, len(changes)) == (0.0, 2)
    found.bind_if_due(NOW)
    assert found.listener is None
    assert found.due is None
    found.end()


def test_a_taken_address_is_said_once_and_tried_again(watch: Watch, free_port: int) -> None:
    taken = socket.create_server(("127.0.0.1", free_port))
    found, changes = addresses(watch.shell, f"127.0.0.1:{free_port}")
    for _ in range(3):
        found.bind_if_due(watch.os.now)
        watch.os.now += RETRY
        assert found.due == watch.os.now
    assert len(watch.log.said("trying again")) == 1
    taken.close()
    found.bind_if_due(watch.os.now)
    assert (found.due, len(changes)) == (None, 1)
    assert watch.log.said(f"listening on 127.0.0.1:{free_port} now")
    found.end()


def test_an_arbiter_of_usr2_waits_for_the_address_in_silence(watch: Watch, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        found, _ = addresses(watch.shell, f"127.0.0.1:{free_port}", speaks=False)
        found.bind_if_due(NOW)
        assert not watch.log.said("trying again")
        found.end()


@pytest.mark.parametrize("bad", ["203.0.113.1:9464", "unix:/no/such/x"])
def test_an_address_that_cannot_be_one_ends_nothing(watch: Watch, bad: str) -> None:
    found, _ = addresses(watch.shell, bad)
    found.bind_if_due(NOW)
    assert len(watch.log.said("metrics_bind: cannot listen on")) == 1
    assert found.due is not None
    found.end()


def look_up(watch: Watch, metrics_bind: str) -> MonitorAddresses:
    """A child looks the name up: its answer is the test's."""
    found, _ = addresses(watch.shell, metrics_bind)
    found.bind_if_due(watch.os.now)
    return found


def answer(watch: Watch, text: bytes) -> None:
    os.write(watch.os.writers[-1], text)
    watch.shell.select()


def test_the_loop_does_not_wait_for_a_name_server(watch: Watch, free_port: int) -> None:
    found = look_up(watch, f"my-host:{free_port}")
    assert (found.listener, found.due) == (None, watch.os.now + LIMIT)
    answer(watch, f"+127.0.0.1:{free_port}".encode())
    assert found.listener is not None
    assert found.listener.getsockname() == ("127.0.0.1", free_port)
    assert found.due is None
    found.end()


def test_a_name_that_is_not_known_is_said_and_asked_for_again(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    answer(watch, b"-Name or service not known")
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: Name or service not known; trying again")
    assert found.due == watch.os.now + RETRY
    found.end()


def test_a_name_that_leads_to_a_taken_address_is_named(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        found = look_up(watch, "my-host:1")
        answer(watch, f"+{place}".encode())
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: the address is in use")
    found.end()


def test_a_name_that_is_slow_to_look_up_is_asked_for_less_often(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    watch.os.now += 2.0
    answer(watch, b"-slow")
    assert found.due == watch.os.now + 2.0 * REST
    found.end()


def test_a_name_server_that_does_not_answer_is_given_up(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    watch.os.now += LIMIT
    found.bind_if_due(watch.os.now)
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: it takes longer than 5 s; trying again")
    assert watch.os.sent() == [(101, "SIGKILL")]
    assert found.due == watch.os.now + LIMIT * REST
    found.end()


@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_a_lookup_that_cannot_be_forked_is_tried_again(watch: Watch, call: str) -> None:
    watch.os.faults[call] = [fault(errno.EMFILE)]
    found = look_up(watch, "my-host:1")
    assert watch.log.said("cannot listen on my-host:1: Too many open files; trying again")
    assert found.due == watch.os.now + RETRY
    found.end()


def test_another_address_or_the_end_does_not_wait_for_the_lookup(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    found.configure(settings())
    assert watch.os.sent() == [(101, "SIGKILL")]
    found.bind_if_due(watch.os.now)
    found.configure(settings("your-host:1"))
    found.bind_if_due(watch.os.now)
    found.end()
    assert watch.os.sent()[1:] == [(102, "SIGKILL")]
    assert watch.shell.select() == 0


def test_without_a_command_socket_the_server_goes_on(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise fault(errno.ENOSPC)

    monkeypatch.setattr(address, "bind_command", refuse)
    found, _ = addresses(watch.shell, "")
    assert found.command_listener is None
    assert watch.log.said("going on without commands")
    found.end()


def test_a_worker_closes_them_all(watch: Watch, free_port: int) -> None:
    found, _ = addresses(watch.shell, f"127.0.0.1:{free_port}")
    found.bind_if_due(NOW)
    found.metrics_address(settings(metrics_path="/metrics"))
    found.close()
    listeners = (found.listener, found.command_listener, found.metrics_socket.listener)
    assert [listener and listener.fileno() for listener in listeners] == [-1, -1, -1]
    assert found.metrics_socket.address  # a worker goes on to ask there
    found.metrics_socket.close()


@pytest.mark.parametrize(
    "changes",
    [{"metrics_bind": "127.0.0.1:0"}, {"metrics_hosts": frozenset({"a.example"})}],
)
def test_a_reload_that_changes_how_it_listens_replaces_the_monitor(
    watch: Watch, changes: dict[str, Any]
) -> None:
    found, seen = addresses(watch.shell, "")
    found.configure(settings())
    assert seen == []
    found.configure(settings(**changes))
    assert len(seen) == 1
    found.end()


def test_the_name_that_it_listens_on_may_be_in_the_host_header(watch: Watch) -> None:
    found, _ = addresses(watch.shell, "")
    found.configure(settings("metrics.example.com:9464", metrics_hosts=frozenset({"*.example.org"})))
    assert found.hosts == {"metrics.example.com", "*.example.org"}
    found.end()


# --- where workers ask for `metrics_path`


def abstract_sockets() -> set[str]:
    """The unix sockets of this machine that have a name and no file."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[-1] for line in lines if "@multicore-server" in line}


def test_without_a_metrics_path_nothing_is_bound(watch: Watch) -> None:
    found, changes = addresses(watch.shell, "")
    assert found.metrics_address(settings()) == ""
    assert (found.metrics_socket.listener, changes) == (None, [])
    assert not any(str(os.getpid()) in name for name in abstract_sockets())
    found.end()


def test_a_worker_reaches_the_metrics_socket_and_nobody_finds_it(watch: Watch, tmp_path: Path) -> None:
    found, changes = addresses(watch.shell, "")
    where = found.metrics_address(settings(metrics_path="/metrics"))
    assert len(changes) == 1
    listener = found.metrics_socket.listener
    assert listener is not None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(where)
        listener.accept()[0].close()
    assert not Path(listener.getsockname()).parent.exists()
    assert found.metrics_address(settings(metrics_path="/other")) == where
    assert len(changes) == 1
    found.configure(settings())
    assert (found.metrics_address(settings()), len(changes)) == ("", 2)
    found.end()


@pytest.mark.parametrize(
    "call", ["socket.socket.listen", "os.open", "tempfile.mkdtemp", "pathlib.Path.chmod"]
)
def test_a_metrics_path_that_cannot_be_served_costs_one_line(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise fault(errno.EMFILE)

    found, changes = addresses(watch.shell, "")
    before = shell.descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        for _ in range(3):
            assert found.metrics_address(settings(metrics_path="/metrics")) == ""
    assert len(watch.log.said("metrics_path cannot be served")) == 1
    assert shell.descriptors() == before
    assert changes == []
    assert found.metrics_address(settings(metrics_path="/metrics"))  # the next worker finds it mended
    found.end()


def test_where_only_shared_memory_is_writable(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    monkeypatch.setattr("tempfile.tempdir", None)
    found, _ = addresses(watch.shell, "")
    assert found.metrics_address(settings(metrics_path="/metrics"))
    found.end()


# --- what is published ---


def published(publisher: Publisher) -> Report:
    found: Report = json.loads(publisher.shared_report.read())
    return found


@pytest.fixture
def publisher(watch: Watch) -> Publisher:
    settings = Settings(
        workers=2, **{name: row.parse(row.default) for name, row in TABLE.items() if name != "workers"}
    )
    deployment: Any = SimpleNamespace(listeners=["unix:x"], settings=settings)
    return Publisher(watch.shell.context, "app:make('secret')", lambda: deployment, lambda: 300)


def test_what_is_published(publisher: Publisher) -> None:
    publisher.publish()
    report = published(publisher)
    assert (report["name"], report["addresses"], report["worker_memory_limit"]) == (
        "app:make",
        ["unix:x"],
        300,
    )
    assert report["arbiter"]["pid"] == shell.ARBITER


def test_events_are_published_before_they_are_logged(publisher: Publisher) -> None:
    publisher.record([ev.Event("ready", "one"), ev.Event("gone", "two")])
    assert [(it["id"], it["text"]) for it in published(publisher)["events"]] == [(1, "one"), (2, "two")]


def test_nothing_new_is_not_published_again(publisher: Publisher) -> None:
    publisher.publish()
    before = publisher.shared_report.changes
    publisher.publish()
    assert publisher.shared_report.changes == before


def test_times_follow_a_clock_that_is_set(publisher: Publisher, watch: Watch) -> None:
    watch.shell.observe(ev.Forked(*_first_fork(watch.shell), 4711))
    publisher.publish()
    (before,) = (it["started"] for it in published(publisher)["slots"][0]["processes"])
    watch.os.epoch += 3600.0
    publisher.publish()
    (after,) = (it["started"] for it in published(publisher)["slots"][0]["processes"])
    assert after - before == pytest.approx(3600.0)


def _first_fork(made: Shell) -> tuple[int, int]:
    fork = made.next_fork()
    return fork.instance, fork.generation


def test_a_report_without_room_costs_one_log_line(publisher: Publisher, watch: Watch) -> None:
    publisher.publish()
    publisher._name = "x" * (publishing.ROOM * 2)
    for _ in range(3):
        publisher.publish()
    assert len(watch.log.said("the monitor could not be told")) == 1
    publisher._name = "short"
    publisher.publish()
    assert published(publisher)["name"] == "short"


def test_the_monitor_is_given_what_it_needs(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(context: Any) -> int:
        seen.append(context)
        return 0

    monkeypatch.setattr("multicore_server.monitor.process.run", run)
    channel = watch.shell.context.system.monitor_channel()
    assert watch.monitor._serve(channel) == 0
    assert (seen[0].shared_report, seen[0].lifeline) == ("the report", shell.PIPE[0])
    assert seen[0].command_listener is watch.addresses.command_listener
