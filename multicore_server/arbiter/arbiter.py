"""The arbiter: gunicorn's arbiter with the decisions of the fleet.

It is the shell around the fleet. It turns signals, messages and exits into observations, and carries out the
actions. It waits only in `wait_for_signals`; nothing else in its loop waits, and it has no second thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.errors import HaltServer

from multicore_server import hosts
from multicore_server.arbiter import (
    app_metrics,
    deployment,
    hooks,
    listeners,
    logs,
    other_systems,
    pidfile,
)
from multicore_server.arbiter.commands import Commands
from multicore_server.arbiter.context import ArbiterContext, Lifeline
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.forked_call import ForkedCall
from multicore_server.arbiter.forks import forks
from multicore_server.arbiter.inspection import Inspection
from multicore_server.arbiter.interruption import ENDS
from multicore_server.arbiter.lateness import Lateness
from multicore_server.arbiter.log_rotation import LogRotation
from multicore_server.arbiter.monitor_addresses import MonitorAddresses
from multicore_server.arbiter.monitor_process import MonitorProcess
from multicore_server.arbiter.orphans import Orphans
from multicore_server.arbiter.parent import ParentArbiter
from multicore_server.arbiter.publishing import Publisher
from multicore_server.arbiter.reloader import Reloader
from multicore_server.arbiter.report import in_words
from multicore_server.arbiter.resolution import doubts
from multicore_server.arbiter.statsd import Statsd
from multicore_server.arbiter.systemd import service
from multicore_server.arbiter.vitals import Vitals
from multicore_server.arbiter.worker_number import WorkerNumber, need_of, oom_line
from multicore_server.arbiter.worker_processes import WorkerProcesses
from multicore_server.connections.handover import Handover
from multicore_server.fleet import events as ev
from multicore_server.fleet.events import Action
from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.slots import State
from multicore_server.ipc.cluster_state import ClusterState
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard, slots_for
from multicore_server.ipc.stack_dumps import StackDumps
from multicore_server.machine import cgroup, memory
from multicore_server.machine.cpu import usable_cpus
from multicore_server.machine.descriptors import raise_descriptor_limit
from multicore_server.version import __version__
from multicore_server.worker import loggers
from multicore_server.worker.engine import import_ahead

ENDING = ("TERM", "QUIT")  # signals that come with an order
LONGEST_WAIT = 60.0  # seconds: the wall clock of cron_restart may jump meanwhile


class Arbiter(ParentArbiter):
    """See `multicore_server.arbiter.takeover` for how gunicorn's arbiter becomes one of these."""

    deployment_number = 1

    def _open(self) -> None:
        """Make, once and before the first fork, all that workers inherit."""
        raise_descriptor_limit()
        hooks.wrap_events(self.cfg, self.log)
        self._lateness = Lateness()
        self._errored: frozenset[int] = frozenset()
        self._quiet_until = {}
        capacity = slots_for(self.settings.workers)
        scoreboard = Scoreboard(capacity)
        number = WorkerNumber.of(self.settings, self.cfg)
        for line in (hosts.versions(__version__), number.reason(usable_cpus(), cgroup.cpu_quota())):
            self.log.info("%s", line)
        options = deployment.fleet_options(self.settings, self.cfg)
        self.fleet = Fleet(options, self.settings.workers, capacity, tries=number.tries)
        selector = selectors.DefaultSelector()
        selector.register(self._wake_reader, selectors.EVENT_READ, self._woken)
        self.context = ArbiterContext(
            pid=self.pid,
            log=self.log,
            selector=selector,
            fleet=self.fleet,
            scoreboard=scoreboard,
            handover=Handover.make(scoreboard, capacity),
            requests=RequestTable(capacity * ROWS_PER_SLOT),
            cluster=ClusterState.make(capacity * ROWS_PER_SLOT),
            lifeline=Lifeline(*os.pipe()),
            observe=self.observe,
        )
        self.context.in_child.append(self._close_loop)
        self._stack_dumps = self._dump_stacks_when_signalled()
        self.inspection = Inspection(self.fleet, scoreboard)
        self.inspection.configure(self.settings, self.cfg)
        self.vitals = Vitals(scoreboard.head)
        self._statsd = Statsd()
        app_metrics.obey(self.settings, self.cfg)
        logs.adopt(self.log, self.cfg)
        self._make_parts()
        self._deadline: float | None = 0.0
        self._changed = True
        losses = (*hosts.losses(), *other_systems.losses())
        for line in filter(None, (oom_line(), *doubts(self.app, self.settings), *losses)):
            self.log.warning("%s", line)
        import_ahead(self.cfg, self.worker_class.CONFIG_KWARGS)
        forks.guard(self.context.lifeline.writer, self._descriptors_of_serving)
        gc.collect()  # before the freeze: garbage would stay, and its pages be copied in every child
        gc.freeze()

    def _dump_stacks_when_signalled(self) -> StackDumps | None:
        """In all processes."""
        try:
            return StackDumps()
        except OSError as exc:
            if not other_systems.missing():  # that line says it
                self.log.warning("the stacks of a blocked process cannot be shown: %s", exc)
            return None

    def _make_parts(self) -> None:
        context = self.context
        self.publisher = Publisher(
            context, str(self.cfg.proc_name), self.in_force, lambda: self.inspection.memory_limit
        )
        addresses = MonitorAddresses(
            self.log,
            context.system,
            self.settings,
            speaks=lambda: not self.master_pid,
            ask=lambda answer, done: ForkedCall(context, answer, done, self._become_helper),
        )
        commands = Commands(context, self.end)
        self.monitor = MonitorProcess(
            context, addresses, self.publisher.shared_report, commands.carry_out, self._become_monitor
        )
        self.reloader = Reloader(
            context, self.in_force, self._install, self._become_helper, self.interruption
        )
        self.rotation = LogRotation(self.log, self.handle_usr1, lambda: not self.master_pid)
        self.rotation.configure(self.settings, self.cfg)
        self.orphans = Orphans(context, self._is_known, lambda: float(self.cfg.graceful_timeout))
        self.worker_processes = WorkerProcesses(
            context,
            self,
            self.WORKERS,
            in_force=self.in_force,
            deployment_for=self._deployment_for,
            close_in_worker=self._close_in_worker,
            metrics_address=addresses.metrics_address,
            oom_killed=lambda: self.inspection.oom_killed(time.monotonic()),
            hooked=self.orphans.spare,
        )

    # --- the loop: gunicorn's run() calls these three ---

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        with self.guarded("an event"):
            self._wait()
        signals = []
        with contextlib.suppress(queue.Empty):
            while True:
                signals.append(self.SIG_QUEUE.get_nowait())
        if not ENDS.isdisjoint(signals):  # exits last: Ctrl-C ends workers too, and they have not crashed
            signals.sort(key=lambda number: number == signal.SIGCHLD)
        self.maybe_promote_master()  # USR2 is refused beside an old arbiter, and that may be gone by now
        return [number for number in signals if number != self.WAKEUP_REQUEST]

    def _wait(self) -> None:
        patience = self._patience()
        self._forgive(self._lateness.check(time.monotonic(), patience))
        found = self.context.selector.select(patience)
        self._forgive(self._lateness.check(time.monotonic()))
        for key, _ in found:
            with self.guarded("a message from a child"):
                key.data()

    def _forgive(self, late: float) -> None:
        """Nobody is judged by the time in which this process itself was paused."""
        if late:
            self.log.warning("the arbiter was paused or starved for %.1f s; giving everyone more time", late)
            self.inspection.forgive(time.monotonic())
            self.monitor.forgive(time.monotonic())
            self.observe(ev.Paused(late))

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _patience(self) -> float:
        longest = 1.0 if self.master_pid else LONGEST_WAIT  # whether the old arbiter has gone is polled
        now = time.monotonic()
        parts = (self.inspection, self.reloader, self.monitor, self.orphans, self.rotation)
        moments = (self._deadline, service.due(now), *(part.due for part in parts))
        due = [moment for moment in moments if moment is not None]
        return max(0.0, min(min(due) - now, longest))

    def murder_workers(self) -> None:
        """Hung workers are the inspection's and the fleet's."""

    def manage_workers(self) -> None:
        with self.guarded("a message from a worker"):
            self._forgive(self._lateness.check(time.monotonic()))
            self.worker_processes.hear_all()
        with self.guarded("the number of workers"):
            self._start_the_others()
        with self.guarded("the reload"):
            self.reloader.tick(time.monotonic())
        with self.guarded("the processes that dead workers left"):
            self.orphans.tick(time.monotonic())
        with self.guarded("the size of the logs"):
            self.rotation.tick(time.monotonic())
        with self.guarded("the inspection"):
            for observation in self.inspection.inspect(time.monotonic()):
                self.observe(observation)
        while actions := self._decide():
            for action in actions:
                if isinstance(action, ev.Halt):
                    self._halt(action)
                with self.guarded(f"the action {type(action).__name__}"):
                    ACTIONS[type(action)](self, action)
        if self._changed:
            with self.guarded("errored instances"):
                self._tell_errored()
        with self.guarded("the report"):
            self._publish_serving()
            self._show()

    def _start_the_others(self) -> None:
        """Where one worker was to show how many have room."""
        if not self.fleet.trying:
            return
        ready = next((process for process in self.fleet.processes() if process.state is State.READY), None)
        if ready is None:
            return
        others = sum(memory.rss(pid) for pid in (self.pid, self.monitor.pid) if pid)
        number, line = WorkerNumber.of(self.settings, self.cfg).learn(need_of(ready.pid), others)
        if line:
            self.log.warning("%s", line)
        self.observe(ev.Fit(number))

    def _decide(self) -> list[Action]:
        """What is to be done now; nothing more is found in the next call."""
        actions: list[Action] = []
        self._deadline = time.monotonic() + 1.0  # where deciding fails
        with self.guarded("a decision"):
            actions, self._deadline = self.fleet.tick(now := time.monotonic())
            service.alive(now)
            if actions:
                self._changed = True
                self.publisher.record(action for action in actions if isinstance(action, ev.Event))
                self._publish_serving()  # before those that retire are told so
        return actions

    def _publish_serving(self) -> None:
        self.context.scoreboard.publish(self.fleet.serving_rows())

    def _show(self) -> None:
        now = time.monotonic()
        with self.guarded("the arbiter's own figures"):
            self.vitals.sample(self.LISTENERS, now)
            self._statsd.tell(self.log, self.cfg, len(self.fleet.serving_rows()), self.LISTENERS, now)
        with self.guarded("the monitor"):
            self.monitor.tick(now)
        if self._changed:
            self._changed = False
            service.status(in_words(self.fleet))
            self.publisher.publish()

    def manage_dirty_arbiter(self) -> None:
        """gunicorn's dirty workers are its own, and cost the server nothing either."""
        with self.guarded("the dirty arbiter"):
            super().manage_dirty_arbiter()

    def observe(self, observation: ev.Observation) -> None:
        self._changed = True
        self.fleet.observe(observation, time.monotonic())

    # --- workers ---

    def in_force(self) -> Deployment:
        return Deployment(
            self.app, self.cfg, self.settings, self.LISTENERS, self.deployment_number, given=self.systemd
        )

    def _deployment_for(self, fork: ev.Fork) -> Deployment:
        candidate = self.reloader.candidate if fork.candidate else None
        return candidate or self.in_force()

    def _install(self, new: Deployment, old: Deployment) -> None:
        """Put a deployment in force in place of another one."""
        self.LISTENERS = new.listeners
        new.enter()
        new.cfg.set("workers", self.fleet.workers)  # for gunicorn, which takes it from there
        self.setup(new.app)
        if self.log.cfg is not new.cfg:  # older gunicorns leave the log as it was
            logs.set_up_log(self.log, new.cfg)
        loggers.use_format(self.log, new.cfg, new.settings.log_format)
        logs.adopt(self.log, new.cfg)
        self.settings, self.deployment_number = new.settings, new.number
        self.inspection.configure(new.settings, new.cfg)
        self.monitor.addresses.configure(new.settings)
        logs.reopen_log(self.log, new.cfg)
        self.rotation.configure(new.settings, new.cfg)
        if new.cfg.pidfile != old.cfg.pidfile:
            self.pidfile = pidfile.move(self.pidfile, new.cfg.pidfile, self.pid, self.log)
        hosts.set_title(f"master [{self.proc_name}]")
        self.cfg.on_reload(self)
        self.orphans.spare()

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
        getattr(self.log, event.level)("%s", event, extra=logs.fields_of(event))
        if event.kind == "reload" and event.reason:
            service.reloaded("" if event.reason == "ok" else event.text)
            self.cfg.on_reload_result(self, event.reason, event.text)
            self.orphans.spare()

    def _tell_errored(self) -> None:
        """The on_errored hook."""
        before, self._errored = self._errored, self.fleet.errored()
        for instance in sorted(self._errored - before):
            self.cfg.on_errored(self, instance)
            self.orphans.spare()

    def _fork(self, fork: ev.Fork) -> None:
        self.orphans.spare()
        self.worker_processes.fork(fork)

    def _send(self, action: ev.Signal) -> None:
        worker = self.WORKERS.get(action.pid)
        if worker is not None and action.name in ENDING:  # the app may have taken the signal
            worker.context.channel.order_end(quick=action.name == "QUIT")
        self.kill_worker(action.pid, getattr(signal, f"SIG{action.name}"))

    def _scaled(self, scaled: ev.Scaled) -> None:
        self.num_workers = scaled.workers
        self.orphans.spare()  # nworkers_changed is a hook

    def _close_listeners(self, _: ev.CloseListeners) -> None:
        self.reloader.drop()
        self.context.scoreboard.publish(frozenset())  # nobody hands connections to a worker that ends as well
        alone = self.reexec_pid == self.master_pid == 0 and not self.systemd
        listeners.unbind(self.LISTENERS, unlink=alone)
        self.LISTENERS = []

    def _halt(self, halt: ev.Halt) -> NoReturn:
        self.monitor.end()
        self.orphans.end()
        forks.release()
        service.hand_over(self.reexec_pid)
        if halt.status or halt.reason:
            raise HaltServer(halt.reason, halt.status)
        raise StopIteration


ACTIONS: dict[type[Action], Callable[..., None]] = {
    ev.Event: Arbiter._tell,
    ev.Fork: Arbiter._fork,
    ev.Signal: Arbiter._send,
    ev.Scaled: Arbiter._scaled,
    ev.CloseListeners: Arbiter._close_listeners,
    ev.PrepareReload: lambda arbiter, _: arbiter.reloader.prepare(),
    ev.CommitReload: lambda arbiter, _: arbiter.reloader.commit(),
    ev.DropReload: lambda arbiter, _: arbiter.reloader.drop(),
}
