"""The arbiter: gunicorn's, with the fleet's decisions in place of its own.

The shell around the fleet: it turns signals, messages and exits into observations and carries out the
actions. Its one wait is `wait_for_signals`; nothing else in its loop waits, and it has no second thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import resource
import selectors
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import gunicorn.arbiter
from gunicorn import util
from gunicorn.errors import HaltServer
from gunicorn.pidfile import Pidfile

from multicore_server import deployment, hooks, listeners, systemd
from multicore_server import events as ev
from multicore_server.channel import Channel
from multicore_server.deployment import Deployment, DeploymentError
from multicore_server.engine import without_effect
from multicore_server.events import Action
from multicore_server.fleet import Fleet
from multicore_server.inspection import Inspection
from multicore_server.scoreboard import Scoreboard, slots_for
from multicore_server.settings import SettingError, environment, unknown_environment
from multicore_server.worker import Seat

LONGEST_WAIT = 60.0  # seconds: the wall clock of cron_restart may jump meanwhile


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """See `multicore_server.entrance` for how gunicorn's arbiter becomes one of these."""

    # --- start ---

    def start(self) -> None:
        try:
            self.settings = deployment.resolve_settings(self.app)
        except SettingError as exc:
            self._refuse(str(exc))
        hooks.rescue(self.cfg, self.log)
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        try:
            super().start()
        except listeners.BindError as exc:
            self._refuse(str(exc))
        except SystemExit:
            self._clean_up()
            raise
        self._open()

    def _refuse(self, reason: str) -> NoReturn:
        """A mistake of the user's: one line, exit status 1, nothing left behind."""
        self.log.error("%s", reason)
        if self.cfg.errorlog != "-":
            print(f"Error: {reason}", file=sys.stderr)  # noqa: T201 - whoever started it sees no log file
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
        self.fleet = Fleet(options, self.settings.workers, capacity)
        self.inspection = Inspection(self.fleet, self.scoreboard)
        self.inspection.configure(self.settings, self.cfg)
        self.candidate: Deployment | None = None
        self._lifeline, self._lifeline_writer = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._talking: list[Any] = []
        self._deadline: float | None = 0.0
        self._announced = False
        self._interface = ""
        _raise_descriptor_limit()
        if self.cfg.preload_app:
            gc.collect()  # before the freeze: garbage would stay, and its pages be copied in every worker
            gc.freeze()
        for line in unknown_environment(environment(self.cfg), self.settings):
            self.log.warning("%s", line)
        for line in without_effect(self.cfg):
            self.log.warning("%s", line)

    # --- the loop: gunicorn's run() calls these three ---

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        for key, _ in self._selector.select(self._patience()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reader, 4096)
            else:
                self._talking.append(key.data)
        signals = []
        with contextlib.suppress(queue.Empty):
            while True:
                signals.append(self.SIG_QUEUE.get_nowait())
        return [number for number in signals if number != self.WAKEUP_REQUEST]

    def _patience(self) -> float:
        longest = 1.0 if self.master_pid else LONGEST_WAIT  # whether the old arbiter has gone is polled
        due = [deadline for deadline in (self._deadline, self.inspection.due) if deadline is not None]
        return max(0.0, min(min(due) - time.monotonic(), longest))

    def murder_workers(self) -> None:
        """Hung workers are the inspection's and the fleet's."""

    def manage_workers(self) -> None:
        for worker in self._talking:
            self._hear(worker)
        self._talking.clear()
        for observation in self.inspection.look(time.monotonic()):
            self._observe(observation)
        while True:
            actions, self._deadline = self.fleet.tick(time.monotonic())
            if not actions:
                return
            for action in actions:
                ACTIONS[type(action)](self, action)

    def _observe(self, observation: ev.Observation) -> None:
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
        self._observe(ev.Reload())
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGHUP)

    def handle_term(self) -> None:
        self._stop(graceful=True)

    def handle_int(self) -> None:
        self._stop(graceful=False)

    handle_quit = handle_int

    def _stop(self, *, graceful: bool) -> None:
        systemd.notify("STOPPING=1", self.log)
        self._observe(ev.Stop(graceful))

    def handle_ttin(self) -> None:
        self._observe(ev.Scale(self.fleet.workers + 1))

    def handle_ttou(self) -> None:
        if self.fleet.workers > 1:
            self._observe(ev.Scale(self.fleet.workers - 1))

    def handle_winch(self) -> None:
        if self.cfg.daemon:
            self.log.info("graceful stop of workers")
            self._observe(ev.Scale(0))
        else:
            self.log.debug("SIGWINCH ignored. Not daemonized")

    def reexec(self) -> None:
        try:
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

    # --- workers come ---

    def _fork(self, fork: ev.Fork) -> None:
        made_from = self.candidate if fork.candidate else self._in_force()
        assert made_from is not None
        try:
            worker = self._hire(fork, made_from)
            made_from.cfg.pre_fork(self, worker)
            pid = os.fork()
        except Exception as exc:  # noqa: BLE001 - no process, no descriptor, no temporary file
            self._observe(ev.ForkFailed(fork.instance, fork.generation, str(exc)))
            return
        if pid == 0:
            self._become_worker(worker, made_from, candidate=fork.candidate)
        worker.pid = pid
        worker.seat.channel.worker_end.close()
        self.WORKERS[pid] = worker
        self._selector.register(worker.seat.channel.arbiter_end, selectors.EVENT_READ, worker)
        self._observe(ev.Forked(fork.instance, fork.generation, pid))

    def _in_force(self) -> Deployment:
        return Deployment(self.app, self.cfg, self.settings, self.LISTENERS)

    def _hire(self, fork: ev.Fork, made_from: Deployment) -> Any:
        self.worker_age += 1
        cfg = made_from.cfg
        worker = cfg.worker_class(
            self.worker_age, self.pid, made_from.listeners, made_from.app, cfg.timeout / 2.0, cfg, self.log
        )
        row = self.scoreboard.row(fork.row)
        worker.seat = Seat(
            fork.instance, fork.generation, row, Channel(), self._lifeline, made_from.settings
        )
        worker.leave = lambda: cfg.worker_exit(self, worker)
        return worker

    def _become_worker(self, worker: Any, made_from: Deployment, *, candidate: bool) -> NoReturn:
        worker.pid = os.getpid()
        try:
            self._leave_behind(worker)
            if candidate:
                deployment.reset_environment(self.cfg)
                self.log.setup(made_from.cfg)
            util._setproctitle(f"worker [{made_from.cfg.proc_name}]")
            worker.boot(lambda: made_from.cfg.post_fork(self, worker))
            sys.exit(0)
        finally:
            worker.tmp.close()
            worker.leave()

    def _leave_behind(self, worker: Any) -> None:
        """Close what is the arbiter's: its end must be seen, and an address it gives up must be free."""
        os.close(self._lifeline_writer)
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._selector.close()
        worker.seat.channel.arbiter_end.close()
        for sibling in self.WORKERS.values():
            sibling.tmp.close()
            sibling.seat.channel.arbiter_end.close()
        for listener in {*self.LISTENERS, *(self.candidate.listeners if self.candidate else ())}:
            if listener not in worker.sockets:
                listener.close()

    def _hear(self, worker: Any) -> str:
        """Observe what a worker says; its last words are the caller's."""
        words = ""
        for message in worker.seat.channel.received():
            if "ready" in message:
                self._interface = message["ready"]
                self._observe(ev.BecameReady(worker.pid))
                self._announce()
            elif "retire" in message:
                self._observe(ev.AskedToRetire(worker.pid, message["retire"], message["draining"]))
            else:
                words = message["words"]
        worker.last_words = words or worker.last_words
        return worker.last_words

    def _announce(self) -> None:
        """The first worker is ready, so the service is."""
        if self._announced:
            return
        self._announced = True
        systemd.notify("READY=1\nSTATUS=Serving", self.log)
        if self._interface != "wsgi" and self.cfg.threads > 1:
            text = "the app is ASGI and brings its own concurrency"
            self.log.warning("threads = %s has no effect: %s", self.cfg.threads, text)

    # --- workers go ---

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
            self._bury(worker, status)
        elif pid == self.reexec_pid:
            self.reexec_pid = 0
            self.log.warning("the arbiter that USR2 started has ended (pid=%s); this one goes on", pid)
        elif pid == self.dirty_arbiter_pid:
            self.dirty_arbiter_pid = 0
            self.dirty_arbiter = None
        else:
            self.log.debug("reaped a child that is no worker (pid=%s)", pid)

    def _bury(self, worker: Any, status: int) -> None:
        words = self._hear(worker)
        self._selector.unregister(worker.seat.channel.arbiter_end)
        worker.seat.channel.close()
        worker.tmp.close()
        self._talking = [other for other in self._talking if other is not worker]
        self._observe(self._exited(worker.pid, status, words))
        self.cfg.child_exit(self, worker)

    def _exited(self, pid: int, status: int, words: str) -> ev.Exited:
        if os.WIFEXITED(status):
            return ev.Exited(pid, code=os.WEXITSTATUS(status), words=words)
        number = os.WTERMSIG(status)
        found = self.fleet.find(pid)
        ours = found is not None and found[1].killed
        oom = number == signal.SIGKILL and not ours and self.inspection.oom_killed()
        return ev.Exited(pid, signal=self._signal_name(number), oom=oom, words=words)

    @staticmethod
    def _signal_name(number: int) -> str:
        try:
            return signal.Signals(number).name
        except ValueError:  # real-time signals have no names
            return f"signal {number}"

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
        if self.candidate is not None:
            self._drop_reload(ev.DropReload())
        alone = self.reexec_pid == self.master_pid == 0 and not self.systemd
        listeners.unbind(self.LISTENERS, unlink=alone)
        self.LISTENERS = []

    def _halt(self, halt: ev.Halt) -> NoReturn:
        if halt.status or halt.reason:
            raise HaltServer(halt.reason, halt.status)
        raise StopIteration

    # --- reload ---

    def _prepare_reload(self, _: ev.PrepareReload) -> None:
        systemd.reloading(self.log)
        if self.cfg.preload_app:
            text = "preload_app: the app's code stays as the arbiter has loaded it; USR2 loads new code"
            self.log.warning("%s", text)
        try:
            self.candidate = deployment.load_afresh(self._in_force(), self.log)
        except DeploymentError as exc:
            self._observe(ev.ReloadFailed(str(exc)))
            return
        settings = self.candidate.settings
        options = deployment.fleet_options(settings, self.candidate.cfg)
        self._observe(ev.ReloadPrepared(options, settings.workers))

    def _commit_reload(self, _: ev.CommitReload) -> None:
        new, self.candidate = self.candidate, None
        assert new is not None
        before, self.LISTENERS = self.LISTENERS, new.listeners
        listeners.unbind([listener for listener in before if listener not in new.listeners])
        deployment.reset_environment(self.cfg)
        old_pidfile = self.cfg.pidfile
        self._num_workers = new.settings.workers  # nworkers_changed is for the Scaled action to call
        self.setup(new.app)
        self.settings = new.settings
        self.inspection.configure(new.settings, new.cfg)
        self.log.reopen_files()
        self._move_pidfile(old_pidfile)
        util._setproctitle(f"master [{self.proc_name}]")
        if before is not self.LISTENERS:
            self.log.info("Listening at: %s", ",".join(map(str, self.LISTENERS)))
        self.cfg.on_reload(self)

    def _move_pidfile(self, old: str | None) -> None:
        if self.cfg.pidfile == old:
            return
        try:
            new = Pidfile(self.cfg.pidfile) if self.cfg.pidfile else None
            if new is not None:
                new.create(self.pid)
        except (OSError, RuntimeError) as exc:
            self.log.error("pidfile %s: %s; keeping %s", self.cfg.pidfile, exc, old)
            return
        if self.pidfile is not None:
            self.pidfile.unlink()
        self.pidfile = new

    def _drop_reload(self, _: ev.DropReload) -> None:
        dropped, self.candidate = self.candidate, None
        if dropped is not None:
            listeners.unbind([listener for listener in dropped.listeners if listener not in self.LISTENERS])


ACTIONS: dict[type[Action], Callable[..., None]] = {
    ev.Event: Arbiter._tell,
    ev.Fork: Arbiter._fork,
    ev.Signal: Arbiter._send,
    ev.Scaled: Arbiter._scaled,
    ev.CloseListeners: Arbiter._close_listeners,
    ev.Halt: Arbiter._halt,
    ev.PrepareReload: Arbiter._prepare_reload,
    ev.CommitReload: Arbiter._commit_reload,
    ev.DropReload: Arbiter._drop_reload,
}


def _raise_descriptor_limit() -> None:
    """Every connection and every worker's channel takes a descriptor; the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
