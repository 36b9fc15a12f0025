"""The worker processes, as the arbiter sees them: how one comes, what it says, how it goes.

A part of the arbiter's shell around the fleet.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from gunicorn import util

from multicore_server.arbiter import logs, systemd
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.hooks import once
from multicore_server.fleet import events as ev
from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.identity import identity
from multicore_server.ipc.messages import LastWords, RetireRequest, WorkerReady
from multicore_server.metrics.app import directory as app_directory
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.worker import Worker

if TYPE_CHECKING:
    from multicore_server.arbiter.arbiter import Arbiter


class WorkerProcesses:
    """Forks workers, hears them and buries them; what follows is the fleet's to say."""

    def __init__(self, arbiter: Arbiter) -> None:
        self.arbiter = arbiter
        self.lifeline, self._lifeline_writer = os.pipe()
        self._talking: list[Worker] = []
        self._announced = False
        self._interface = ""
        self._shown = ""  # the last boot's traceback

    # --- they come ---

    def fork(self, fork: ev.Fork) -> None:
        made_from = self.arbiter.deployment_for(fork)
        worker: Worker | None = None
        try:
            worker = self._hire(fork, made_from)
            made_from.cfg.pre_fork(self.arbiter, worker)
            pid = os.fork()
        except Exception as exc:  # noqa: BLE001 - no process, no descriptor, no temporary file
            self._dismiss(worker)
            self.arbiter.observe(ev.ForkFailed(fork.instance, fork.generation, str(exc)))
            return
        if pid == 0:
            self._become(worker, made_from, candidate=fork.candidate)
        worker.pid = pid
        worker.context.channel.child_end.close()
        self.arbiter.WORKERS[pid] = worker
        end = worker.context.channel.arbiter_end
        self.arbiter.selector.register(end, selectors.EVENT_READ, partial(self._note, worker))
        self.arbiter.observe(ev.Forked(fork.instance, fork.generation, pid))

    def _hire(self, fork: ev.Fork, made_from: Deployment) -> Worker:
        arbiter, cfg = self.arbiter, made_from.cfg
        arbiter.worker_age += 1
        worker: Worker = cfg.worker_class(
            arbiter.worker_age, arbiter.pid, made_from.listeners, made_from.app, cfg.timeout / 2.0, cfg,
            arbiter.log,
        )  # fmt: skip
        arbiter.scoreboard.begin(fork.row)
        row = arbiter.scoreboard.row(fork.row)
        worker.context = WorkerContext(
            fork.instance, fork.generation, fork.row, row, WorkerChannel(), self.lifeline, made_from.settings,
            arbiter.handover, arbiter.monitor_process.inner_address,
        )  # fmt: skip
        worker.leave = once(lambda: cfg.worker_exit(arbiter, worker))
        return worker

    @staticmethod
    def _dismiss(worker: Worker | None) -> None:
        """Give back what a worker holds in the arbiter."""
        if worker is not None:
            worker.context.channel.close()
            worker.tmp.close()

    def _become(self, worker: Worker, made_from: Deployment, *, candidate: bool) -> NoReturn:
        """In the child. Nothing but SystemExit may get out: the frames above are the arbiter's, and what
        they do about any other exception is to end all workers."""
        worker.pid = os.getpid()
        try:
            self._leave_behind(worker)
            if candidate:
                made_from.enter()
                logs.set_up_log(self.arbiter.log, made_from.cfg)
            util._setproctitle(f"worker [{made_from.cfg.proc_name}]")
            worker.boot(lambda: made_from.cfg.post_fork(self.arbiter, worker))
            sys.exit(0)
        except SystemExit:
            raise
        except BaseException as exc:  # noqa: BLE001 - as above
            worker.fail(exc)
        finally:
            worker.tmp.close()
            worker.leave()

    def _leave_behind(self, worker: Worker) -> None:
        """Close what is the arbiter's: its end must be seen, and an address it gives up must be free."""
        self.leave_behind()
        self.arbiter.monitor_process.close()
        worker.context.channel.arbiter_end.close()
        for listener in self.arbiter.all_listeners():
            if listener not in worker.sockets:
                listener.close()

    def leave_behind(self) -> None:
        """In any child: close what is the arbiter's."""
        os.close(self._lifeline_writer)
        self.arbiter.close_loop()
        for sibling in self.arbiter.WORKERS.values():
            sibling.tmp.close()
            sibling.context.channel.arbiter_end.close()

    # --- they talk ---

    def _note(self, worker: Worker) -> None:
        """Something has arrived from this worker."""
        self._talking.append(worker)

    def hear_all(self) -> None:
        for worker in self._talking:
            self._hear(worker)
        self._talking.clear()

    def _hear(self, worker: Worker) -> str:
        """Observe what a worker says; its last words are the caller's."""
        words = ""
        for message in worker.context.channel.received():
            if isinstance(message, WorkerReady):
                self._interface = message.interface
                self._shown = ""
                self.arbiter.observe(ev.BecameReady(worker.pid))
                self._announce()
            elif isinstance(message, RetireRequest):
                self.arbiter.observe(ev.AskedToRetire(worker.pid, message.reason, message.draining))
            elif isinstance(message, LastWords):
                words = " ".join(message.words.split())
                self._show(worker, message.trace)
            else:
                self.arbiter.log.warning(
                    "%s said something that is dropped: %s", self._identity(worker), message.why
                )
        if worker.context.channel.ended:
            self._stop_listening(worker)
        worker.last_words = words or worker.last_words
        return worker.last_words

    def _show(self, worker: Worker, trace: str) -> None:
        """Show why a worker could not boot; once, if it is the same for all."""
        if trace and trace != self._shown:
            self._shown = trace
            self.arbiter.log.error("%s could not boot\n%s", self._identity(worker), trace)

    @staticmethod
    def _identity(worker: Worker) -> str:
        return identity(worker.context.instance, worker.context.generation, worker.pid)

    def _stop_listening(self, worker: Worker) -> None:
        with contextlib.suppress(KeyError):  # it was done before
            self.arbiter.selector.unregister(worker.context.channel.arbiter_end)

    def _announce(self) -> None:
        """The first worker is ready, so the service is."""
        if self._announced:
            return
        self._announced = True
        systemd.notify("READY=1\nSTATUS=Serving", self.arbiter.log)
        threads = self.arbiter.cfg.threads
        if self._interface != "wsgi" and threads > 1:
            text = "the app is ASGI and brings its own concurrency"
            self.arbiter.log.warning("threads = %s has no effect: %s", threads, text)

    # --- they go ---

    def bury(self, worker: Worker, status: int) -> None:
        """A worker was reaped."""
        words = self._hear(worker)
        self._stop_listening(worker)
        self._dismiss(worker)
        self._talking = [other for other in self._talking if other is not worker]
        self.arbiter.scoreboard.clear(worker.context.number)
        directory = app_directory.current()
        if directory is not None:
            directory.forget_live(directory.identifier(worker.context.number))
        self.arbiter.observe(self._exited(worker.pid, status, words))
        self.arbiter.cfg.child_exit(self.arbiter, worker)

    def _exited(self, pid: int, status: int, words: str) -> ev.Exited:
        if os.WIFEXITED(status):
            return ev.Exited(pid, code=os.WEXITSTATUS(status), words=words)
        number = os.WTERMSIG(status)
        found = self.arbiter.fleet.find(pid)
        ours = found is not None and found[1].killed
        oom = number == signal.SIGKILL and not ours and self.arbiter.inspection.oom_killed()
        return ev.Exited(pid, signal=_signal_name(number), oom=oom, words=words)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
