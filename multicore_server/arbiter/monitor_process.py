"""The arbiter's side of the monitor: forks it, watches it, answers its commands.

A part of the arbiter's shell. Every failure of the monitor is logged and repaired, and serving never waits
for the monitor.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.monitor_addresses import MonitorAddresses
from multicore_server.fleet.policy import End, History, RestartPolicy, judge
from multicore_server.ipc.channel import MonitorChannel, Unreadable
from multicore_server.ipc.messages import Answer, Command
from multicore_server.ipc.scoreboard import Head
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.metrics.app import directory as app_directory
from multicore_server.metrics.app.merge import AppMetrics
from multicore_server.metrics.definitions import TAKEN
from multicore_server.monitor.process import MonitorContext, run
from multicore_server.monitor.signals import HANDLED

START_WITHIN = 1.0  # seconds that workers have the CPUs for themselves at the start
SILENCE = 30.0  # seconds without a heartbeat after which the monitor is killed
FAREWELL = 1.0  # seconds that it has to end
PAUSE = 0.01  # seconds between two looks at whether it has ended
POLICY = RestartPolicy(max_restarts=sys.maxsize)  # it is never given up


class MonitorProcess:
    """``pid`` is the monitor's, 0 while there is none. ``carry_out`` answers an operator's command;
    ``become_monitor`` makes the forked child fit to serve: it closes what is not the monitor's and gives up
    privileges."""

    def __init__(
        self,
        context: ArbiterContext,
        addresses: MonitorAddresses,
        shared_report: SharedReport,
        carry_out: Callable[[Command], Answer],
        become_monitor: Callable[[], None],
    ) -> None:
        self.pid = 0
        self.addresses = addresses
        addresses.on_change = self.replace
        self._context = context
        self._shared_report = shared_report
        self._carry_out = carry_out
        self._become_monitor = become_monitor
        self._channel: MonitorChannel | None = None
        self._history = History()
        self._started = 0.0
        self._forgiven = 0.0  # when the arbiter came out of its last pause
        self._replacing = False  # it has been told to end
        self._start_at: float | None = context.system.monotonic() + START_WITHIN

    # --- in the arbiter's loop ---

    @property
    def due(self) -> float | None:
        """When `tick` must be called next."""
        moments = (self._start_at, self.addresses.due)
        return min((moment for moment in moments if moment is not None), default=None)

    def forgive(self, now: float) -> None:
        """The arbiter itself was paused: heartbeats count from now on."""
        self._forgiven = now

    def tick(self, now: float) -> None:
        """Do what is due."""
        self.addresses.bind_if_due(now)
        if self._start_at is not None and (self._start_at <= now or self._may_start_early()):
            self._start_at = None
            self._fork()
        heartbeat = self._context.scoreboard.head[Head.MONITOR_HEARTBEAT]
        heard = max(heartbeat, self._started, self._forgiven)
        if self.pid and now - heard > SILENCE:
            self._context.log.error("monitor pid=%s has hung for %.0f s; killing it", self.pid, now - heard)
            self._started = now
            self._kill(signal.SIGKILL)

    def _may_start_early(self) -> bool:
        slots = self._context.fleet.slots.values()
        return (
            not self._started and any(slot.serving for slot in slots) and not any(s.starting for s in slots)
        )

    # --- it comes ---

    def _fork(self) -> None:
        context, channel = self._context, None
        try:
            channel = context.system.monitor_channel()
            context.listen_to(channel.arbiter_end, self._hear)
            context.system.sigmask(signal.SIG_BLOCK, HANDLED)  # in the child, until it has its handlers
            pid = context.system.fork()
        except OSError as exc:
            context.system.sigmask(signal.SIG_UNBLOCK, HANDLED)
            if channel is not None:
                context.stop_listening_to(channel.arbiter_end)
                channel.close()
            self._start_at = context.system.monotonic() + POLICY.max_restart_delay
            context.log.error("the monitor could not be forked (%s)", exc)
            return
        if pid == 0:
            self._run_child(channel)
        context.system.sigmask(signal.SIG_UNBLOCK, HANDLED)
        with contextlib.suppress(OSError):  # it has done so itself
            context.system.setpgid(pid, pid)
        channel.child_end.close()
        self.pid, self._channel, self._started = pid, channel, context.system.monotonic()
        context.log.debug("monitor pid=%s started", pid)

    def _run_child(self, channel: MonitorChannel) -> NoReturn:
        """In the child. Its own process group: Ctrl-C is for the arbiter, and it is needed until the end."""
        context, status = self._context, 1
        try:
            context.system.setpgid(0, 0)
            channel.arbiter_end.close()
            context.leave_behind()
            self._become_monitor()
            status = self._serve(channel)
        except BaseException as exc:  # noqa: BLE001 - the frames above are the arbiter's
            context.log.error("monitor pid=%s failed: %s: %s", os.getpid(), type(exc).__name__, exc)
        finally:
            context.system.exit(status)

    def _serve(self, channel: MonitorChannel) -> int:
        directory = app_directory.current()
        monitor = MonitorContext(
            scoreboard=self._context.scoreboard,
            requests=self._context.requests,
            shared_report=self._shared_report,
            listener=self.addresses.listener,
            metrics_listener=self.addresses.metrics_socket.listener,
            hosts=self.addresses.hosts,
            command_listener=self.addresses.command_listener,
            lifeline=self._context.lifeline.reader,
            channel=channel.child_end,
            mailboxes=self._context.cluster.mailboxes,
            log=self._context.log.error_log,
            reopen_log=self._context.log.reopen_files,
        )
        if directory is not None:
            merge = AppMetrics(directory.path, TAKEN)
            monitor = replace(monitor, app_metrics=merge, app_identifier=directory.identifier)
        return run(monitor)

    # --- it talks ---

    def _hear(self) -> None:
        channel = self._channel
        if channel is None:
            return
        for message in channel.received():
            if isinstance(message, Unreadable):
                text = "a message of monitor pid=%s is dropped: %s"
                self._context.log.warning(text, self.pid, message.why)
            else:
                channel.answer(self._carry_out(message))
        if channel.ended:
            self._context.stop_listening_to(channel.arbiter_end)

    # --- it goes ---

    def reaped(self, status: int) -> None:
        """The monitor is gone."""
        pid, self.pid = self.pid, 0
        self._hang_up()
        now = self._context.system.monotonic()
        if self._replacing:
            self._replacing, self._start_at = False, now
            return
        if self._context.fleet.stopping:  # whoever stops the server may have told all of its processes
            return
        jitter = random.random()  # noqa: S311 - of a delay
        verdict = judge(POLICY, self._history, End(None, now - self._started), jitter)
        # As with workers, a stable life clears what was before.
        self._history = verdict.history
        self._start_at = now + verdict.delay
        text = "monitor pid=%s exited (status %s); restarting it in %.1f s"
        self._context.log.warning(text, pid, os.waitstatus_to_exitcode(status), verdict.delay)

    def replace(self) -> None:
        """Its addresses have changed."""
        if self.pid:
            self._replacing = True
            self._kill(signal.SIGTERM)

    def reopen_log(self) -> None:
        if self.pid:
            self._kill(signal.SIGUSR1)

    def _kill(self, number: signal.Signals) -> None:
        try:
            self._context.system.kill(self.pid, number)
        except ProcessLookupError:
            return
        except OSError as exc:  # no CAP_KILL, say
            self._context.log.error("cannot send %s to monitor pid=%s: %s", number.name, self.pid, exc)

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._context.stop_listening_to(channel.arbiter_end)
            channel.close()

    def close(self) -> None:
        """In a child that is not the monitor."""
        self.addresses.close()
        if self._channel is not None:
            self._channel.close()

    def end(self) -> None:
        """The server's end: the monitor has shown it until now."""
        if self.pid:
            self._kill(signal.SIGTERM)
            self._wait(self._context.system.monotonic() + FAREWELL)
        self._hang_up()
        self.addresses.end()

    def _wait(self, deadline: float) -> None:
        system = self._context.system
        with contextlib.suppress(ChildProcessError):
            while not system.waitpid(self.pid, os.WNOHANG)[0]:
                if system.monotonic() > deadline:
                    self._kill(signal.SIGKILL)
                    return  # init reaps it: to wait for a process that may not die would be for ever
                system.sleep(PAUSE)
