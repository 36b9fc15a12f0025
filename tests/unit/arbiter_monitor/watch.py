"""The arbiter's side of a monitor, in a simulated shell."""

from __future__ import annotations

from typing import Any

from multicore_server.arbiter.forked_call import ForkedCall
from multicore_server.arbiter.monitor_addresses import Ask, MonitorAddresses
from multicore_server.arbiter.monitor_process import START_WITHIN, MonitorProcess
from multicore_server.ipc.messages import Answer, Command
from multicore_server.ipc.scoreboard import Head
from multicore_server.settings.table import Settings
from tests.unit.shell import Shell

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
