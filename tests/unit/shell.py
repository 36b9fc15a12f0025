"""A simulated system for the arbiter's parts: processes, a clock, and faults of the kernel to inject."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

from multicore_server.arbiter.context import ArbiterContext, Lifeline
from multicore_server.arbiter.system import System
from multicore_server.fleet import events as ev
from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.policy import Options
from multicore_server.ipc.channel import MonitorChannel, WorkerChannel
from multicore_server.ipc.identity import identity
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.settings.hooks import EVENTS

ARBITER = 1
PIPE = (1001, 1002)  # of nobody: closing them is recorded


class ChildExitError(BaseException):
    """``os._exit`` in a simulated child."""


def fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class FakeSystem:
    """Forks give pids from 100 on, or play the child if ``child`` is set. ``faults`` maps the name of a call
    to the exceptions that its next calls raise."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.epoch = 1_700_000_000.0
        self.child = False
        self.faults: dict[str, list[BaseException]] = {}
        self.living: list[int] = []
        self.ended: list[tuple[int, int]] = []  # pids and statuses to be reaped
        self.obeys_term = True
        self.daemons: set[int] = set()  # those of the living that have a session of their own
        self.calls: list[tuple[Any, ...]] = []
        self.channels: list[Any] = []
        self.ends: list[socket.socket] = []  # the children's ends of their channels
        self.pipes: list[int] = []  # descriptors that are open
        self.writers: list[int] = []  # the children's ends of the pipes
        self.readers: list[int] = []  # the arbiter's
        self._pid = 100

    def system(self) -> System:
        return System(
            fork=self.fork,
            kill=self.kill,
            waitpid=self.waitpid,
            pipe=self.pipe,
            close=self.close,
            getpid=lambda: ARBITER,
            sigmask=lambda how, signals: self.calls.append(("sigmask", how)),
            setpgid=lambda pid, group: self._call("setpgid", pid, group),
            getsid=self.getsid,
            children=lambda: list(self.living),
            has_ended_child=lambda: bool(self.ended),
            name_of=lambda pid: f"process-{pid}",
            become_subreaper=lambda: self._call("become_subreaper"),
            exit=self.exit,
            monotonic=lambda: self.now,
            time=lambda: self.epoch + self.now,
            sleep=self.sleep,
            worker_channel=lambda: self._channel(WorkerChannel),
            monitor_channel=lambda: self._channel(MonitorChannel),
        )

    def _call(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if self.faults.get(name):
            raise self.faults[name].pop(0)

    def _channel(self, kind: type[Any]) -> Any:
        self._call("channel")
        channel = kind()
        self.channels.append(channel)
        self.ends.append(channel.child_end.dup())  # the arbiter closes its own
        return channel

    def pipe(self) -> tuple[int, int]:
        self._call("pipe")
        reader, writer = os.pipe()
        self.pipes += [reader, writer]
        self.writers.append(os.dup(writer))  # the arbiter closes its own
        self.readers.append(os.dup(reader))
        return reader, writer

    def close(self, descriptor: int) -> None:
        self.calls.append(("close", descriptor))
        if descriptor in self.pipes:
            self.pipes.remove(descriptor)
            os.close(descriptor)

    def fork(self) -> int:
        self._call("fork")
        if self.child:
            return 0
        self._pid += 1
        self.living.append(self._pid)
        return self._pid

    def kill(self, pid: int, number: int) -> None:
        self._call("kill", pid, number)
        if pid not in self.living:
            raise fault(errno.ESRCH)
        if number == signal.SIGKILL or (number == signal.SIGTERM and self.obeys_term):
            self.end(pid, number)

    def getsid(self, pid: int) -> int:
        self._call("getsid", pid)
        if pid not in (0, *self.living):
            raise fault(errno.ESRCH)
        return pid if pid in self.daemons else ARBITER

    def end(self, pid: int, status: int) -> None:
        self.living.remove(pid)
        self.ended.append((pid, status))

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        self._call("waitpid", pid)
        for ended in self.ended:
            if pid in (-1, ended[0]):
                self.ended.remove(ended)
                return ended
        if pid not in self.living:
            raise fault(errno.ECHILD)
        return 0, 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def exit(self, status: int) -> NoReturn:
        self.calls.append(("exit", status))
        raise ChildExitError

    def sent(self) -> list[tuple[int, str]]:
        """The signals, in order."""
        return [(call[1], signal.Signals(call[2]).name) for call in self.calls if call[0] == "kill"]


class Log(logging.Logger):
    """gunicorn's logger, as far as the arbiter uses it; ``lines`` are what it says."""

    def __init__(self, cfg: Any = None) -> None:
        super().__init__("test", logging.DEBUG)
        self.lines: list[str] = []
        self.error_log = self
        self.cfg = cfg

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg

    def reopen_files(self) -> None:
        """There are none."""

    def close_on_exec(self) -> None:
        """There are none."""

    def handle(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")

    def said(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]


class Shell:
    """A context with a simulated system, and a real fleet of two that is told what the test says."""

    def __init__(self, workers: int = 2) -> None:
        self.os = FakeSystem()
        self.log = Log()
        self.observed: list[ev.Observation] = []
        self._forks: list[ev.Fork] = []
        scoreboard = Scoreboard(8)
        self.fleet = Fleet(Options(), workers, 8)
        handover: Any = None  # of the workers; the parts only pass it on
        self.announced = 0  # how often workers were told that there may be no primary one
        cluster: Any = SimpleNamespace(
            mailboxes=SimpleNamespace(empty=lambda row: None),
            primary=SimpleNamespace(announce=self._announce),
        )
        self.context = ArbiterContext(
            pid=ARBITER,
            log=self.log,
            selector=selectors.DefaultSelector(),
            fleet=self.fleet,
            scoreboard=scoreboard,
            handover=handover,
            requests=RequestTable(8 * ROWS_PER_SLOT),
            cluster=cluster,
            lifeline=Lifeline(*PIPE),
            observe=self.observe,
            system=self.os.system(),
        )

    def _announce(self) -> None:
        self.announced += 1

    def observe(self, observation: ev.Observation) -> None:
        self.observed.append(observation)
        self.fleet.observe(observation, self.os.now)

    def take_observed(self) -> list[ev.Observation]:
        observed, self.observed[:] = list(self.observed), []
        return observed

    def next_fork(self) -> ev.Fork:
        """The next of the forks that the fleet asks for."""
        actions, _ = self.fleet.tick(self.os.now)
        self._forks += [action for action in actions if isinstance(action, ev.Fork)]
        return self._forks.pop(0)

    def select(self) -> int:
        """One turn of the selector, without waiting; how many callbacks were called."""
        found = self.context.selector.select(0)
        for key, _ in found:
            key.data()
        return len(found)

    def reap_helpers(self) -> None:
        """The children that answer questions have ended, and the arbiter hears of it."""
        while self.context.helpers:
            _, reaped = self.context.helpers.popitem()
            reaped()

    def close(self) -> None:
        for end in [*self.os.ends, *self.os.channels]:
            end.close()
        for descriptor in [*self.os.pipes, *self.os.writers, *self.os.readers]:
            os.close(descriptor)
        self.context.selector.close()


@contextmanager
def shell(workers: int = 2) -> Iterator[Shell]:
    made = Shell(workers)
    try:
        yield made
    finally:
        made.close()


class Worker:
    """What `WorkerProcesses` needs of a worker."""

    def __init__(
        self, age: int, ppid: int, sockets: Any, app: Any, timeout: float, cfg: Any, log: Any
    ) -> None:
        if cfg.worker_fails:
            raise cfg.worker_fails
        self.age, self.ppid, self.sockets, self.app, self.cfg = age, ppid, sockets, app, cfg
        self.timeout = timeout
        self.pid = 0
        self.last_words = ""
        self.tmp = SimpleNamespace(close=lambda: cfg.calls.append("tmp closed"))
        self.failed: BaseException | None = None
        self.context: Any
        self.leave: Any

    @property
    def identity(self) -> str:
        return identity(self.context.instance, self.context.generation, self.pid)

    def boot(self, post_fork: Any) -> None:
        post_fork()
        self.cfg.calls.append("boot")

    def fail(self, exc: BaseException) -> NoReturn:
        self.failed = exc
        raise SystemExit(3)


def configuration(**changes: Any) -> SimpleNamespace:
    """gunicorn's, as far as the arbiter's parts read it."""
    calls: list[Any] = []
    hooks = ("pre_fork", "post_fork", "worker_exit", "child_exit", "on_reload", *EVENTS)
    found = {name: (lambda *args, name=name: calls.append(name)) for name in hooks}
    given = {"worker_class": Worker, "worker_fails": None, "timeout": 30, "threads": 1, "proc_name": "app"}
    return SimpleNamespace(calls=calls, **found, **given | changes)
