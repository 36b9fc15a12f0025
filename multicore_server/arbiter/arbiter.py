"""The arbiter: gunicorn's, with the fleet's decisions in place of its own.

The shell around the fleet: it turns signals, messages and exits into observations and carries out the
actions. Its one wait is `wait_for_signals`; nothing else in its loop waits, and it has no second thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import gunicorn.arbiter
from gunicorn.errors import HaltServer

from multicore_server.arbiter import deployment, listeners, logs, systemd
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.inspection import Inspection
from multicore_server.arbiter.monitor_process import MonitorProcess
from multicore_server.arbiter.reloader import Reloader
from multicore_server.arbiter.vitals import Vitals
from multicore_server.arbiter.worker_processes import WorkerProcesses
from multicore_server.connections.handover import Handover
from multicore_server.fleet import events as ev
from multicore_server.fleet.events import Action
from multicore_server.fleet.fleet import Fleet
from multicore_server.ipc.scoreboard import Scoreboard, slots_for
from multicore_server.machine.descriptors import raise_descriptor_limit
from multicore_server.settings.gunicorn import without_effect
from multicore_server.settings.sources import environment, unknown_environment
from multicore_server.settings.table import SettingError
from multicore_server.worker.worker import Worker

LONGEST_WAIT = 60.0  # seconds: the wall clock of cron_restart may jump meanwhile


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """See `multicore_server.entrance` for how gunicorn's arbiter becomes one of these."""

    LISTENERS: list[Any]
    WORKERS: dict[int, Worker]
    reexec_pid: int
    dirty_arbiter_pid: int

    # --- start ---

    def start(self) -> None:
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]  # sys.argv has lost a -m
        self.START_CTX["cwd"] = self.cfg.settings["chdir"].default  # --chdir is relative to it, in USR2's too
        try:
            self.settings = deployment.resolve_settings(self.app)
        except SettingError as exc:
            self._refuse(str(exc))
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        try:
            super().start()
        except listeners.BindError as exc:
            self._refuse(str(exc))
        except (OSError, RuntimeError) as exc:  # gunicorn's, most likely about the pidfile
            self._refuse(f"cannot start: {exc}")
        except SystemExit:
            self._clean_up()
            raise
        self._open()

    def _refuse(self, reason: str) -> NoReturn:
        """A mistake of the user's: one line, exit status 1, nothing left behind."""
        self.log.error("%s", reason)
        if self.cfg.errorlog != "-":
            print(f"Error: {reason}", file=sys.stderr)  # whoever started it sees no log file
        self._clean_up()
        sys.exit(1)

    def _clean_up(self) -> None:
        listeners.unbind(self.LISTENERS)
        self.LISTENERS = []
        if self.pidfile is not None:
            self.pidfile.unlink()

    def init_signals(self) -> None:
        super().init_signals()
        self._listen()

    def _listen(self) -> None:
        """Bind in one place, also with reuse_port: a listener of a worker's own loses its backlog with it."""
        inherited = self.master_pid or os.environ.get("LISTEN_PID") == str(os.getpid())
        if self.LISTENERS or (inherited and not self.cfg.reuse_port):
            return  # gunicorn takes inherited descriptors over
        if self.master_pid:
            fds = [int(fd) for fd in os.environ.pop("GUNICORN_FD").split(",")]
            self.LISTENERS = [listeners.inherit(fd, self.cfg, self.log) for fd in fds]
            return
        self.LISTENERS = listeners.bind(self.cfg, self.log, patience=listeners.PATIENCE, wait=self._nap)

    def _nap(self, seconds: float) -> None:
        """Wait before there is a loop; a signal to end is obeyed at once."""
        with contextlib.suppress(queue.Empty):
            name = self.SIG_NAMES.get(self.SIG_QUEUE.get(timeout=seconds))
            if name in ("term", "int", "quit"):
                raise SystemExit(0)

    def _open(self) -> None:
        """Make, once and before the first fork, all that workers inherit."""
        capacity = slots_for(self.settings.workers)
        self.scoreboard = Scoreboard(capacity)
        options = deployment.fleet_options(self.settings, self.cfg)
        self.handover = Handover.make(self.scoreboard, capacity)
        self.fleet = Fleet(options, self.settings.workers, capacity)
        self.inspection = Inspection(self.fleet, self.scoreboard)
        self.inspection.configure(self.settings, self.cfg)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        self.worker_processes = WorkerProcesses(self)
        self.reloader = Reloader(self)
        self.vitals = Vitals(self.scoreboard.head)
        self.monitor_process = MonitorProcess(self)
        self._deadline: float | None = 0.0
        self._changed = True
        raise_descriptor_limit()
        if self.cfg.preload_app:
            gc.collect()  # before the freeze: garbage would stay, and its pages be copied in every worker
            gc.freeze()
        for line in unknown_environment(environment(self.cfg), self.settings):
            self.log.warning("%s", line)
        for line in without_effect(self.cfg):
            self.log.warning("%s", line)

    # --- the loop: gunicorn's run() calls these three ---

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        for key, _ in self.selector.select(self._patience()):
            key.data()
        signals = []
        with contextlib.suppress(queue.Empty):
            while True:
                signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number != self.WAKEUP_REQUEST]

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _patience(self) -> float:
        longest = 1.0 if self.master_pid else LONGEST_WAIT  # whether the old arbiter has gone is polled
        moments = (self._deadline, self.inspection.due, self.monitor_process.due)
        due = [moment for moment in moments if moment is not None]
        return max(0.0, min(min(due) - time.monotonic(), longest))

    def close_loop(self) -> None:
        """In a child, which has no use for it."""
        self.selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def murder_workers(self) -> None:
        """Hung workers are the inspection's and the fleet's."""

    def manage_workers(self) -> None:
        self.worker_processes.hear_all()
        for observation in self.inspection.look(time.monotonic()):
            self.observe(observation)
        while True:
            actions, self._deadline = self.fleet.tick(time.monotonic())
            if not actions:
                break
            self.monitor_process.foretell(action for action in actions if isinstance(action, ev.Event))
            self._changed = True
            self.scoreboard.publish(self.fleet.serving_rows())  # before those that retire are told so
            for action in actions:
                ACTIONS[type(action)](self, action)
        self.scoreboard.publish(self.fleet.serving_rows())
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        self.vitals.look(self.LISTENERS, now)
        self.monitor_process.look(now)
        if self._changed:
            self._changed = False
            self.monitor_process.publish()

    def observe(self, observation: ev.Observation) -> None:
        self._changed = True
        self.fleet.observe(observation, time.monotonic())

    # --- signals ---

    def signal(self, sig: int, frame: Any) -> None:
        """Queue it and wake the loop. A child that has no handlers of its own yet ends, as by default."""
        if os.getpid() == self.pid:
            self.SIG_QUEUE.put_nowait(sig)
            with contextlib.suppress(BlockingIOError):  # full: the loop is awake
                os.write(self._wake_writer, b".")
        elif sig in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)

    signal_chld = signal

    def handle_hup(self) -> None:
        self.log.info("Hang up: %s", self.master_name)
        self.observe(ev.Reload())
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGHUP)

    def handle_usr1(self) -> None:
        logs.reopen_log(self.log, self.cfg)
        self.monitor_process.reopen_log()
        super().handle_usr1()

    def handle_term(self) -> None:
        self.end(graceful=True)

    def handle_int(self) -> None:
        self.end(graceful=False)

    handle_quit = handle_int

    def end(self, *, graceful: bool) -> None:
        """Begin to end: with the requests in hand answered, or without."""
        systemd.notify("STOPPING=1", self.log)
        self.observe(ev.Stop(graceful))

    def handle_ttin(self) -> None:
        self.observe(ev.Scale(self.fleet.workers + 1))

    def handle_ttou(self) -> None:
        if self.fleet.workers > 1:
            self.observe(ev.Scale(self.fleet.workers - 1))

    def handle_winch(self) -> None:
        if self.cfg.daemon:
            self.log.info("graceful stop of workers")
            self.observe(ev.Scale(0))
        else:
            self.log.debug("SIGWINCH ignored. Not daemonized")

    def reexec(self) -> None:
        try:
            if self.systemd and not (self.reexec_pid or self.master_pid):
                systemd.reexec(self)
            else:
                super().reexec()
        except OSError as exc:
            self.log.error("USR2: the new arbiter could not be started: %s", exc)
            if os.getpid() != self.pid:
                os._exit(1)

    def maybe_promote_master(self) -> None:
        was = self.master_pid
        super().maybe_promote_master()
        if was and not self.master_pid:
            systemd.notify(f"MAINPID={os.getpid()}", self.log)

    # --- workers ---

    def deployment_for(self, fork: ev.Fork) -> Deployment:
        candidate = self.reloader.candidate if fork.candidate else None
        return candidate or self.in_force()

    def in_force(self) -> Deployment:
        return Deployment(self.app, self.cfg, self.settings, self.LISTENERS, given=self.systemd)

    def all_listeners(self) -> set[Any]:
        candidate = self.reloader.candidate
        return {*self.LISTENERS, *(candidate.listeners if candidate else ())}

    def reap_workers(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._reaped(pid, status)

    def _reaped(self, pid: int, status: int) -> None:
        worker = self.WORKERS.pop(pid, None)
        if worker is not None:
            self.worker_processes.bury(worker, status)
        elif pid == self.monitor_process.pid:
            self.monitor_process.reaped(status)
        elif pid == self.reexec_pid:
            self.reexec_pid = 0
            self.log.warning("the arbiter that USR2 started has ended (pid=%s); this one goes on", pid)
        elif pid == self.dirty_arbiter_pid:
            self.dirty_arbiter_pid = 0
            self.dirty_arbiter = None
        else:
            self.log.debug("reaped a child that is no worker (pid=%s)", pid)

    @property
    def num_workers(self) -> Any:
        return self._num_workers

    @num_workers.setter
    def num_workers(self, workers: int) -> None:
        """gunicorn sets it anew at every reload; the nworkers_changed hook is for changes."""
        if workers != self._num_workers:
            self._set_num_workers(workers)

    # --- the other actions ---

    def _tell(self, event: ev.Event) -> None:
        getattr(self.log, event.level)("%s", event)
        if event.kind == "reload" and event.reason:
            systemd.notify("READY=1", self.log)

    def _send(self, action: ev.Signal) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(action.pid, getattr(signal, f"SIG{action.name}"))

    def _scaled(self, scaled: ev.Scaled) -> None:
        self.num_workers = scaled.workers

    def _close_listeners(self, _: ev.CloseListeners) -> None:
        self.reloader.drop()
        self.scoreboard.publish(frozenset())  # nobody hands connections to a worker that ends as well
        alone = self.reexec_pid == self.master_pid == 0 and not self.systemd
        listeners.unbind(self.LISTENERS, unlink=alone)
        self.LISTENERS = []

    def _halt(self, halt: ev.Halt) -> NoReturn:
        self.monitor_process.end()
        if halt.status or halt.reason:
            raise HaltServer(halt.reason, halt.status)
        raise StopIteration


ACTIONS: dict[type[Action], Callable[..., None]] = {
    ev.Event: Arbiter._tell,
    ev.Fork: lambda arbiter, fork: arbiter.worker_processes.fork(fork),
    ev.Signal: Arbiter._send,
    ev.Scaled: Arbiter._scaled,
    ev.CloseListeners: Arbiter._close_listeners,
    ev.Halt: Arbiter._halt,
    ev.PrepareReload: lambda arbiter, _: arbiter.reloader.prepare(),
    ev.CommitReload: lambda arbiter, _: arbiter.reloader.commit(),
    ev.DropReload: lambda arbiter, _: arbiter.reloader.drop(),
}
