"""The arbiter's side of the monitor: binds its addresses, forks and watches it, answers its commands.

A part of the arbiter's shell. Whatever happens to the monitor or to its addresses is logged and tried again;
serving never waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gunicorn import util

import multicore_server
from multicore_server.arbiter import commands
from multicore_server.arbiter.event_log import EventLog
from multicore_server.arbiter.report import report, shown
from multicore_server.fleet.events import Event
from multicore_server.fleet.policy import End, History, RestartPolicy, judge
from multicore_server.ipc.channel import MonitorChannel, Unreadable
from multicore_server.ipc.scoreboard import Head
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.metrics.app import directory as app_directory
from multicore_server.metrics.app import values as app_values
from multicore_server.monitor import address

if TYPE_CHECKING:
    from multicore_server.arbiter.arbiter import Arbiter

ROOM = 2**20  # bytes of the report, and for each slot
ROOM_PER_SLOT = 2**12
RETRY = 1.0  # seconds between two attempts at an address that is taken
REST = 30  # times as long as an attempt has taken, where that is more
START_WITHIN = 1.0  # seconds that workers have the CPUs for themselves at the start
SILENCE = 30.0  # seconds without a heartbeat after which the monitor is killed
FAREWELL = 1.0  # seconds that it has to end
POLICY = RestartPolicy(max_restarts=sys.maxsize)  # it is never given up


class MonitorProcess:
    """``pid`` is the monitor's, 0 while there is none."""

    def __init__(self, arbiter: Arbiter) -> None:
        self.arbiter = arbiter
        self.pid = 0
        _choose_app_metrics(arbiter)
        self.event_log = EventLog()
        self.shared_report = SharedReport(ROOM + ROOM_PER_SLOT * arbiter.fleet.capacity)
        self._epoch = time.time() - time.monotonic()
        self._facts = self._make_facts()
        self._published = b""
        self._channel: MonitorChannel | None = None
        self._history = History()
        self._started = 0.0
        self._replacing = False  # it has been told to end
        self._start_at: float | None = time.monotonic() + START_WITHIN
        self._bind_at: float | None = 0.0
        self._taken = ""  # the complaint about the address that was logged
        self._address = arbiter.settings.metrics_bind
        self._listener: socket.socket | None = None
        self._file: Path | None = None  # of the listener
        self._command_path: Path | None = None
        self._command_listener = self._bind_command()
        self._inner = self._bind_inner()

    # --- addresses ---

    def _bind_command(self) -> socket.socket | None:
        try:
            path = address.command_path(self.arbiter.pid)
            listener = address.bind_command(path)
        except OSError as exc:
            self.arbiter.log.error("%s; going on without commands", exc)
            return None
        self._command_path = path
        return listener

    @staticmethod
    def _bind_inner() -> socket.socket | None:
        """Where workers ask for `metrics_path`: an abstract socket, which has no owner, see unix(7)."""
        if sys.platform != "linux":
            return None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0multicore-server-{os.getpid()}-{random.getrandbits(64):x}")
        listener.listen(address.BACKLOG)
        return listener

    @property
    def inner_address(self) -> str:
        """The address that workers ask the monitor at; empty if there is none."""
        if self._inner is None:
            return ""
        return os.fsdecode(self._inner.getsockname())

    def configure(self, metrics_bind: str) -> None:
        """A reload has changed the settings."""
        if metrics_bind != self._address:
            self._unbind()
            self._address, self._taken = metrics_bind, ""
            self._bind_at = 0.0
            self._replace()

    def _bind(self) -> None:
        self._bind_at = None
        if not self._address:
            return
        began = time.monotonic()
        try:
            self._listener = address.bind_metrics(self._address)
            self._file = address.file_of(self._address)
        except OSError as exc:
            now = time.monotonic()
            # A name that is slow to look up keeps the arbiter's loop waiting.
            self._bind_at = now + max(RETRY, (now - began) * REST)
            self._complain(str(exc))
            return
        if self._taken:
            self.arbiter.log.info("metrics_bind: listening on %s now", self._address)
        self._taken = ""
        self._replace()

    def _complain(self, text: str) -> None:
        """Once; and not by an arbiter that USR2 has started: the old one has the address until it ends."""
        if text != self._taken and not self.arbiter.master_pid:
            self.arbiter.log.error("%s; trying again", text)
            self._taken = text

    def _unbind(self) -> None:
        if self._listener is not None:
            address.unbind(self._listener, self._file)
            self._listener = self._file = None

    # --- in the arbiter's loop ---

    @property
    def due(self) -> float | None:
        """When `look` is to be called at the latest."""
        return min((moment for moment in (self._start_at, self._bind_at) if moment is not None), default=None)

    def look(self, now: float) -> None:
        """Do what is due."""
        if self._bind_at is not None and self._bind_at <= now:
            self._bind()
        if self._start_at is not None and (self._start_at <= now or self._may_start_early()):
            self._start_at = None
            self._fork()
        heard = max(self.arbiter.scoreboard.head[Head.MONITOR_HEARTBEAT], self._started)
        if self.pid and now - heard > SILENCE:
            self.arbiter.log.error("monitor pid=%s has hung for %.0f s; killing it", self.pid, now - heard)
            self._started = now
            self._kill(signal.SIGKILL)

    def _may_start_early(self) -> bool:
        slots = self.arbiter.fleet.slots.values()
        return (
            not self._started and any(slot.serving for slot in slots) and not any(s.starting for s in slots)
        )

    def publish(self) -> None:
        """Show what has changed. A mistake in here, or no room, costs the news and nothing else."""
        try:
            self._publish()
        except Exception:
            if self._published:
                self.arbiter.log.exception("the monitor could not be told what has changed")
            self._published = b""

    def _publish(self) -> None:
        arbiter = self.arbiter
        state = self._facts | report(arbiter.fleet, self._epoch)
        state["addresses"] = [str(listener) for listener in arbiter.LISTENERS]
        state["worker_memory_limit"] = arbiter.inspection.memory_limit
        state["settings"] = shown(arbiter.settings)
        state["events"] = list(self.event_log.entries)
        # Whatever bytes a path or an exception has brought, and in as little room as there may be.
        text = json.dumps(state, ensure_ascii=False).encode(errors="surrogatepass")
        if text != self._published:
            self.shared_report.publish(text)
            self._published = text

    def foretell(self, events: Iterable[Event]) -> None:
        """Show what is about to be logged: who has read the log finds it here."""
        now = round(time.time(), 3)
        for event in events:
            self.event_log.note(event, now)
        self.publish()

    def _make_facts(self) -> dict[str, Any]:
        versions = {name: version(name) for name in ("gunicorn", "uvicorn")}
        python = platform.python_version()
        about = {"pid": self.arbiter.pid, "started": round(time.time(), 3), "python": python, **versions}
        name = str(self.arbiter.proc_name).partition("(")[0]  # without the arguments of an app factory
        return {"version": multicore_server.__version__, "name": name, "arbiter": about}

    # --- the process ---

    def _fork(self) -> None:
        channel: MonitorChannel | None = None
        try:
            channel = MonitorChannel()
            pid = os.fork()
        except OSError as exc:
            if channel is not None:
                channel.close()
            self._start_at = time.monotonic() + POLICY.max_restart_delay
            self.arbiter.log.error("the monitor could not be forked (%s)", exc)
            return
        if pid == 0:
            self._become(channel)
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        channel.child_end.close()
        self.pid, self._channel, self._started = pid, channel, time.monotonic()
        self.arbiter.selector.register(channel.arbiter_end, selectors.EVENT_READ, self._hear)
        self.arbiter.log.debug("monitor pid=%s started", pid)

    def _become(self, channel: MonitorChannel) -> NoReturn:
        """In the child. Its own process group: Ctrl-C is for the arbiter, and it is needed until the end."""
        status = 1
        try:
            arbiter = self.arbiter
            os.setpgid(0, 0)
            for name in arbiter.SIGNALS:
                signal.signal(name, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.arbiter_end.close()
            arbiter.worker_processes.leave_behind()
            for listener in arbiter.all_listeners():
                listener.close()
            util._setproctitle(f"monitor [{arbiter.proc_name}]")
            util.set_owner_process(arbiter.cfg.uid, arbiter.cfg.gid, initgroups=arbiter.cfg.initgroups)
            status = self._serve(channel)
        except BaseException as exc:  # noqa: BLE001 - the frames above are the arbiter's
            self.arbiter.log.error("monitor pid=%s failed: %s: %s", os.getpid(), type(exc).__name__, exc)
        finally:
            os._exit(status)

    def _serve(self, channel: MonitorChannel) -> int:
        from multicore_server.metrics.app.merge import AppMetrics
        from multicore_server.metrics.definitions import TAKEN
        from multicore_server.monitor.process import MonitorContext, run

        directory = app_directory.current()
        context = MonitorContext(
            scoreboard=self.arbiter.scoreboard,
            shared_report=self.shared_report,
            listeners=[listener for listener in (self._listener, self._inner) if listener is not None],
            command_listener=self._command_listener,
            lifeline=self.arbiter.worker_processes.lifeline,
            channel=channel.child_end,
            log=self.arbiter.log.error_log,
        )
        if directory is not None:
            merge = AppMetrics(directory.path, TAKEN)
            context = replace(context, app_metrics=merge, app_identifier=directory.identifier)
        return run(context)

    def close(self) -> None:
        """In a child that is not the monitor."""
        for listener in (self._listener, self._inner, self._command_listener):
            if listener is not None:
                listener.close()
        if self._channel is not None:
            self._channel.close()

    def reaped(self, status: int) -> None:
        """The monitor is gone."""
        pid, self.pid = self.pid, 0
        self._hang_up()
        now = time.monotonic()
        if self._replacing:
            self._replacing, self._start_at = False, now
            return
        jitter = random.random()  # noqa: S311 - of a delay
        verdict = judge(POLICY, self._history, End(None, now - self._started), jitter)
        # As with workers, a stable life clears what was before.
        self._history = verdict.history
        self._start_at = now + verdict.delay
        text = "monitor pid=%s has ended (status %s); starting it again in %.1f s"
        self.arbiter.log.warning(text, pid, os.waitstatus_to_exitcode(status), verdict.delay)

    def _replace(self) -> None:
        """Its addresses have changed."""
        if self.pid:
            self._replacing = True
            self._kill(signal.SIGTERM)

    def _kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def reopen_log(self) -> None:
        if self.pid:
            self._kill(signal.SIGUSR1)

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(KeyError):
                self.arbiter.selector.unregister(channel.arbiter_end)
            channel.close()

    def end(self) -> None:
        """The server's end: the monitor has shown it until now."""
        if self.pid:
            self._kill(signal.SIGTERM)
            self._wait(time.monotonic() + FAREWELL)
        self._hang_up()
        self._unbind()
        if self._command_listener is not None:
            address.unbind(self._command_listener, self._command_path)

    def _wait(self, deadline: float) -> None:
        with contextlib.suppress(ChildProcessError):
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    self._kill(signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    return
                time.sleep(0.01)

    # --- commands ---

    def _hear(self) -> None:
        channel = self._channel
        if channel is None:
            return
        for message in channel.received():
            if isinstance(message, Unreadable):
                self.arbiter.log.warning(
                    "monitor pid=%s said something that is dropped: %s", self.pid, message.why
                )
            else:
                channel.answer(commands.carry_out(self.arbiter, message))
        if channel.ended:
            self.arbiter.selector.unregister(channel.arbiter_end)


def _choose_app_metrics(arbiter: Arbiter) -> None:
    directory = app_directory.current()
    if not arbiter.settings.app_metrics:
        app_directory.withdraw()
        app_values.uninstall()  # second: prometheus_client chooses by the environment
    elif directory is not None:
        directory.give_to(arbiter.cfg.uid, arbiter.cfg.gid)
