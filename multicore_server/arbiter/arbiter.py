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
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import gunicorn.arbiter
from gunicorn import util
from gunicorn.errors import HaltServer

from multicore_server.arbiter import app_metrics, deployment, listeners, logs, pidfile, systemd
from multicore_server.arbiter.commands import Commands
from multicore_server.arbiter.context import ArbiterContext, Lifeline
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.inspection import Inspection
from multicore_server.arbiter.lateness import Lateness
from multicore_server.arbiter.monitor_addresses import MonitorAddresses
from multicore_server.arbiter.monitor_process import MonitorProcess
from multicore_server.arbiter.publishing import Publisher
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
QUIET = 60.0  # seconds between two log lines about the same part that fails


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """See `multicore_server.arbiter.takeover` for how gunicorn's arbiter becomes one of these."""

    LISTENERS: list[Any]
    WORKERS: dict[int, Worker]
    pidfile: Any
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
        self._lateness = Lateness()
        self._quiet_until: dict[str, float] = {}
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
        try:
            self._open()
        except OSError as exc:  # no descriptors or no memory for what workers share
            self._refuse(f"cannot start: {exc}")

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
        raise_descriptor_limit()
        capacity = slots_for(self.settings.workers)
        scoreboard = Scoreboard(capacity)
        self.fleet = Fleet(deployment.fleet_options(self.settings, self.cfg), self.settings.workers, capacity)
        selector = selectors.DefaultSelector()
        selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        self.context = ArbiterContext(
            pid=self.pid,
            log=self.log,
            selector=selector,
            fleet=self.fleet,
            scoreboard=scoreboard,
            handover=Handover.make(scoreboard, capacity),
            lifeline=Lifeline(*os.pipe()),
            observe=self.observe,
        )
        self.context.in_child.append(self._close_loop)
        self.inspection = Inspection(self.fleet, scoreboard)
        self.inspection.configure(self.settings, self.cfg)
        self.vitals = Vitals(scoreboard.head)
        app_metrics.obey(self.settings, self.cfg)
        self._make_parts()
        self._deadline: float | None = 0.0
        self._changed = True
        if self.cfg.preload_app:
            gc.collect()  # before the freeze: garbage would stay, and its pages be copied in every worker
            gc.freeze()
        for line in unknown_environment(environment(self.cfg), self.settings):
            self.log.warning("%s", line)
        for line in without_effect(self.cfg):
            self.log.warning("%s", line)

    def _make_parts(self) -> None:
        context = self.context
        self.publisher = Publisher(
            context, str(self.proc_name), self.in_force, lambda: self.inspection.memory_limit
        )
        addresses = MonitorAddresses(
            self.log,
            context.system,
            self.settings.metrics_bind,
            speaks=lambda: not self.master_pid,
        )
        commands = Commands(context, self.end)
        self.monitor = MonitorProcess(
            context, addresses, self.publisher.shared_report, commands.carry_out, self._become_monitor
        )
        self.reloader = Reloader(context, self.in_force, self._install)
        self.worker_processes = WorkerProcesses(
            context,
            self,
            self.WORKERS,
            in_force=self.in_force,
            deployment_for=self._deployment_for,
            close_in_worker=self._close_in_worker,
            monitor_address=lambda: addresses.inner_address,
            oom_killed=self.inspection.oom_killed,
        )

    # --- the loop: gunicorn's run() calls these three ---

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        patience = self._patience()
        self._forgive(self._lateness.check(time.monotonic(), patience))
        found = self.context.selector.select(patience)
        self._forgive(self._lateness.check(time.monotonic()))
        for key, _ in found:
            with self._guarded("a message from a child"):
                key.data()
        signals = []
        with contextlib.suppress(queue.Empty):
            while True:
                signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number != self.WAKEUP_REQUEST]

    def _forgive(self, late: float) -> None:
        """Nobody is judged by the time in which this process itself was paused."""
        if late:
            self.log.warning("the arbiter was paused or starved for %.1f s; giving everyone more time", late)
            self.inspection.forgive(time.monotonic())
            self.observe(ev.Paused(late))

    @contextlib.contextmanager
    def _guarded(self, part: str) -> Iterator[None]:
        """A part that fails costs its turn and one log line a minute, and never the server."""
        try:
            yield
        except Exception:
            now = time.monotonic()
            if now >= self._quiet_until.get(part, 0.0):
                self._quiet_until[part] = now + QUIET
                self.log.exception("%s could not be handled; the arbiter goes on", part)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _patience(self) -> float:
        longest = 1.0 if self.master_pid else LONGEST_WAIT  # whether the old arbiter has gone is polled
        moments = (self._deadline, self.inspection.due, self.monitor.due)
        due = [moment for moment in moments if moment is not None]
        return max(0.0, min(min(due) - time.monotonic(), longest))

    def _close_loop(self) -> None:
        """In a child, which has no use for it."""
        self.context.selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def murder_workers(self) -> None:
        """Hung workers are the inspection's and the fleet's."""

    def manage_workers(self) -> None:
        self.worker_processes.hear_all()
        with self._guarded("the inspection"):
            for observation in self.inspection.inspect(time.monotonic()):
                self.observe(observation)
        while True:
            actions, self._deadline = self.fleet.tick(time.monotonic())
            if not actions:
                break
            self.publisher.record(action for action in actions if isinstance(action, ev.Event))
            self._changed = True
            self._publish_serving()  # before those that retire are told so
            for action in actions:
                ACTIONS[type(action)](self, action)
        self._publish_serving()
        self._show()

    def _publish_serving(self) -> None:
        self.context.scoreboard.publish(self.fleet.serving_rows())

    def _show(self) -> None:
        now = time.monotonic()
        self.vitals.sample(self.LISTENERS, now)
        with self._guarded("the monitor"):
            self.monitor.tick(now)
        if self._changed:
            self._changed = False
            self.publisher.publish()

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
        self.monitor.reopen_log()
        super().handle_usr1()

    def handle_term(self) -> None:
        self.end(True)

    def handle_int(self) -> None:
        self.end(False)

    handle_quit = handle_int

    def end(self, graceful: bool) -> None:
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

    def in_force(self) -> Deployment:
        return Deployment(self.app, self.cfg, self.settings, self.LISTENERS, given=self.systemd)

    def _deployment_for(self, fork: ev.Fork) -> Deployment:
        candidate = self.reloader.candidate if fork.candidate else None
        return candidate or self.in_force()

    def _all_listeners(self) -> set[Any]:
        candidate = self.reloader.candidate
        return {*self.LISTENERS, *(candidate.listeners if candidate else ())}

    def _close_in_worker(self, kept: list[Any]) -> None:
        """In a worker: an address that the arbiter gives up must be free."""
        self.monitor.close()
        for listener in self._all_listeners():
            if listener not in kept:
                listener.close()

    def _become_monitor(self) -> None:
        """In the monitor's process. It handles signals as soon as it runs: until then, one to end ends it,
        one to reopen the logs waits, and those that are meant for the arbiter do nothing."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for name in self.SIGNALS:
            ends = name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
            signal.signal(name, signal.SIG_DFL if ends else signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for listener in self._all_listeners():
            listener.close()
        util._setproctitle(f"monitor [{self.proc_name}]")
        util.set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)

    def _install(self, new: Deployment, old: Deployment) -> None:
        """Put a deployment in force in place of another one."""
        self.LISTENERS = new.listeners
        new.enter()
        new.cfg.set("workers", self.fleet.workers)  # for gunicorn, which takes it from there
        self.setup(new.app)
        if self.log.cfg is not new.cfg:  # older gunicorns leave the log as it was
            logs.set_up_log(self.log, new.cfg)
        self.settings = new.settings
        self.inspection.configure(new.settings, new.cfg)
        self.monitor.addresses.configure(new.settings.metrics_bind)
        logs.reopen_log(self.log, new.cfg)
        if new.cfg.pidfile != old.cfg.pidfile:
            self.pidfile = pidfile.move(self.pidfile, new.cfg.pidfile, self.pid, self.log)
        util._setproctitle(f"master [{self.proc_name}]")
        self.cfg.on_reload(self)

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
            self.worker_processes.reaped(worker, status)
        elif pid == self.monitor.pid:
            self.monitor.reaped(status)
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
        try:
            os.kill(action.pid, getattr(signal, f"SIG{action.name}"))
        except ProcessLookupError:  # it has ended meanwhile
            return
        except OSError as exc:  # an arbiter without CAP_KILL, and workers of another user
            self.log.error("pid=%s cannot get SIG%s: %s", action.pid, action.name, exc.strerror)

    def _scaled(self, scaled: ev.Scaled) -> None:
        self.num_workers = scaled.workers

    def _close_listeners(self, _: ev.CloseListeners) -> None:
        self.reloader.drop()
        self.context.scoreboard.publish(frozenset())  # nobody hands connections to a worker that ends as well
        alone = self.reexec_pid == self.master_pid == 0 and not self.systemd
        listeners.unbind(self.LISTENERS, unlink=alone)
        self.LISTENERS = []

    def _halt(self, halt: ev.Halt) -> NoReturn:
        self.monitor.end()
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
