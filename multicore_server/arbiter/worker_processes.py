"""The worker processes as the arbiter sees them: their forks, their messages, their exits.

A part of the arbiter's shell around the fleet.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, NoReturn, TypedDict

from multicore_server import hosts
from multicore_server.arbiter import app_metrics, logs
from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.hooks import once
from multicore_server.arbiter.launch import launch_of
from multicore_server.arbiter.systemd import service
from multicore_server.cluster.messaging import Message
from multicore_server.fleet import events as ev
from multicore_server.fleet.aftermath import reason_of, why_ended
from multicore_server.ipc.channel import MOST_AT_ONCE, Unreadable
from multicore_server.ipc.messages import AppMessage, LastWords, RetireRequest, WorkerMessage, WorkerReady
from multicore_server.ipc.names import Reason
from multicore_server.ipc.request_table import in_words
from multicore_server.ipc.scoreboard import requests_in_progress, whole
from multicore_server.settings.doubts import idle_threads
from multicore_server.settings.table import Settings
from multicore_server.worker import loggers
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.worker import Worker

ALL = 10_000  # messages: more than a channel holds


class WorkerProcesses:
    """Forks workers, hears them and reports their ends; what follows is the fleet's to say.

    ``workers`` are gunicorn's: those alive, by pid. ``server`` is what gunicorn's hooks are given; ``hooked``
    is called after some that may have started a process.
    """

    def __init__(
        self,
        context: ArbiterContext,
        server: Any,
        workers: MutableMapping[int, Worker],
        *,
        in_force: Callable[[], Deployment],
        deployment_for: Callable[[ev.Fork], Deployment],
        close_in_worker: Callable[[list[Any]], None],
        metrics_address: Callable[[Settings], str],
        oom_killed: Callable[[], bool],
        hooked: Callable[[], None],
    ) -> None:
        self._context = context
        self._server = server
        self._workers = workers
        self._in_force = in_force
        self._deployment_for = deployment_for
        self._close_in_worker = close_in_worker
        self._metrics_address = metrics_address
        self._oom_killed = oom_killed
        self._hooked = hooked
        self._talking: list[Worker] = []
        self._age = 0
        self._announced = False
        self._has_called = False  # a hook, while workers were heard
        self._interface = ""
        self._shown = ""  # the last boot's traceback
        context.in_child.append(self._close_siblings)

    # --- they come ---

    def fork(self, fork: ev.Fork) -> None:
        """Start a worker; `Forked` or `ForkFailed` is observed."""
        deployment = self._deployment_for(fork)
        worker: Worker | None = None
        try:
            worker = self._make_worker(fork, deployment)
            end = worker.context.channel.arbiter_end
            self._context.listen_to(end, partial(self._talking.append, worker))
            deployment.cfg.pre_fork(self._server, worker)
            pid = self._context.system.fork()
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - no process, no descriptor; a hook's exit()
            self._give_back(worker)
            self._context.observe(ev.ForkFailed(fork.instance, fork.generation, str(exc)))
            return
        if pid == 0:
            self._run_child(worker, deployment, candidate=fork.candidate)
        worker.pid = pid
        worker.context.channel.child_end.close()
        self._workers[pid] = worker
        self._context.observe(ev.Forked(fork.instance, fork.generation, pid))

    def _make_worker(self, fork: ev.Fork, deployment: Deployment) -> Worker:
        context, cfg = self._context, deployment.cfg
        channel = context.system.worker_channel()
        try:
            self._age += 1
            worker: Worker = cfg.worker_class(
                self._age,
                context.pid,
                deployment.listeners,
                deployment.app,
                cfg.timeout / 2.0,
                cfg,
                context.log,
            )
        except BaseException:
            channel.close()
            raise
        context.scoreboard.assign(fork.row)
        context.cluster.mailboxes.empty(fork.row)  # of what was sent while its last owner's end was noted
        worker.context = WorkerContext(
            instance=fork.instance,
            instances=context.fleet.workers,
            generation=fork.generation,
            number=fork.row,
            row=context.scoreboard.row(fork.row),
            channel=channel,
            lifeline=context.lifeline.reader,
            settings=deployment.settings,
            handover=context.handover,
            requests=context.requests,
            deployment=deployment.number,
            cluster=context.cluster,
            monitor=self._metrics_address(deployment.settings),
        )
        worker.leave = once(lambda: cfg.worker_exit(self._server, worker))
        return worker

    def _give_back(self, worker: Worker | None) -> None:
        """What a worker holds in the arbiter."""
        if worker is not None:
            self._context.stop_listening_to(worker.context.channel.arbiter_end)
            worker.context.channel.close()
            worker.tmp.close()

    def _run_child(self, worker: Worker, deployment: Deployment, *, candidate: bool) -> NoReturn:
        """In the child. Nothing but SystemExit may get out: the frames above are the arbiter's, and what
        they do about any other exception is to end all workers."""
        worker.pid = os.getpid()
        try:
            self._context.leave_behind()
            worker.context.channel.arbiter_end.close()
            self._close_in_worker(worker.sockets)
            if candidate:
                deployment.enter()
                logs.set_up_log(self._context.log, deployment.cfg)
                loggers.use_format(self._context.log, deployment.cfg, deployment.settings.log_format)
            hosts.set_title(f"worker [{deployment.cfg.proc_name}]")
            worker.boot(lambda: deployment.cfg.post_fork(self._server, worker))
            sys.exit(0)
        except SystemExit:
            raise
        except BaseException as exc:  # noqa: BLE001 - as above
            worker.fail(exc)
        finally:
            worker.tmp.close()
            worker.leave()

    def _close_siblings(self) -> None:
        """In any child."""
        for sibling in self._workers.values():
            sibling.tmp.close()
            sibling.context.channel.arbiter_end.close()

    # --- they talk ---

    def hear_all(self) -> None:
        """Observe what has arrived; the selector tells again of what is left."""
        talking, self._talking[:] = list(self._talking), []
        for worker in talking:
            self._hear(worker)
        if self._has_called:  # once for all that was heard: to look for processes costs more than a hook
            self._has_called = False
            self._hooked()

    def _hear(self, worker: Worker, most: int = MOST_AT_ONCE) -> None:
        channel = worker.context.channel
        for message in channel.received(most):
            self._take(worker, message)
        if channel.ended:
            self._context.stop_listening_to(channel.arbiter_end)

    def _take(self, worker: Worker, message: WorkerMessage | Unreadable) -> None:
        if isinstance(message, WorkerReady):
            self._interface = message.interface
            self._shown = ""
            self._context.observe(ev.BecameReady(worker.pid))
            self._announce()
            worker.cfg.on_worker_ready(self._server, worker)
            self._has_called = True
        elif isinstance(message, RetireRequest):
            self._context.observe(ev.AskedToRetire(worker.pid, message.reason, message.draining))
        elif isinstance(message, LastWords):
            worker.last_words = " ".join(message.words.split())
            self._show(worker, message.trace)
        elif isinstance(message, AppMessage):
            said = Message(message.value, worker.context.instance)
            worker.cfg.on_message(self._server, worker, said)
            self._has_called = True
        else:
            text = "a message of %s is dropped: %s"
            self._context.log.warning(text, worker.identity, message.why)

    def _show(self, worker: Worker, trace: str) -> None:
        """Show why a worker could not boot; once, if it is the same for all."""
        if trace and trace != self._shown:
            self._shown = trace
            self._context.log.error("%s could not boot\n%s", worker.identity, trace)

    def _announce(self) -> None:
        """The first worker is ready, so the service is."""
        if self._announced:
            return
        self._announced = True
        service.ready()
        if (launch := launch_of(self._server)) is not None:
            launch.ready()
        if self._interface != "wsgi" and (line := idle_threads(self._in_force().cfg)):
            self._context.log.warning("%s", line)

    # --- they go ---

    def reaped(self, worker: Worker, status: int) -> None:
        """The worker is gone: `Exited` is observed."""
        self._hear(worker, ALL)
        worker.in_hand = self._context.requests.of(worker.context.number, self._context.system.monotonic())
        exited = self._exited(worker, status)
        reason = self._reason(worker, exited)
        self._context.observe(exited)  # first: whatever fails below, the fleet knows
        self._give_back(worker)
        self._talking[:] = [other for other in self._talking if other is not worker]
        self._context.scoreboard.clear(worker.context.number)
        self._context.requests.clear(worker.context.number)
        self._context.cluster.mailboxes.empty(worker.context.number)
        self._context.cluster.primary.announce()
        app_metrics.forget_live(worker.context.number)
        cfg = self._in_force().cfg
        cfg.child_exit(self._server, worker)
        cfg.on_worker_exit(self._server, worker, reason, os.waitstatus_to_exitcode(status))

    def _reason(self, worker: Worker, exited: ev.Exited) -> Reason:
        found = self._context.fleet.find(worker.pid)
        return reason_of(exited) if found is None else why_ended(found[1], exited)

    def _exited(self, worker: Worker, status: int) -> ev.Exited:
        about = self._last_seen(worker)
        if os.WIFEXITED(status):
            return ev.Exited(worker.pid, code=os.WEXITSTATUS(status), **about)
        number = os.WTERMSIG(status)
        found = self._context.fleet.find(worker.pid)
        ours = found is not None and found[1].killed
        oom = number == signal.SIGKILL and not ours and self._oom_killed()
        return ev.Exited(worker.pid, signal=_signal_name(number), oom=oom, **about)

    def _last_seen(self, worker: Worker) -> LastSeen:
        """What it said, and what it had in progress."""
        counted = whole(requests_in_progress(worker.context.row))
        total, now = max(counted, len(worker.in_hand)), self._context.system.monotonic()
        words, in_hand = worker.last_words, in_words(worker.in_hand, total, now)
        return {"words": words, "requests": total, "in_hand": in_hand}


class LastSeen(TypedDict):
    words: str
    requests: int
    in_hand: str


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
