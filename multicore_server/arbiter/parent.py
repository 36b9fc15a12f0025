"""The arbiter as a parent: turns a fork into a child, and handles the exit of a child.

A part of `multicore_server.arbiter.arbiter.Arbiter`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from typing import Any

from gunicorn import util

from multicore_server import hosts
from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.reloader import Reloader
from multicore_server.arbiter.signals import SignalledArbiter
from multicore_server.arbiter.worker_processes import WorkerProcesses
from multicore_server.monitor.signals import ENDING, HANDLED
from multicore_server.worker.worker import Worker


class ParentArbiter(SignalledArbiter):
    WORKERS: dict[int, Worker]
    context: ArbiterContext
    reloader: Reloader
    worker_processes: WorkerProcesses

    # --- in a child

    def _close_loop(self) -> None:
        """In a child, which has no use for it."""
        self.context.selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _all_listeners(self) -> set[Any]:
        candidate = self.reloader.candidate
        return {*self.LISTENERS, *(candidate.listeners if candidate else ())}

    def _descriptors_of_serving(self) -> Iterator[int]:
        """Which no process of a hook's may hold."""
        addresses = self.monitor.addresses
        held = (*self._all_listeners(), addresses.listener, addresses.command_listener)
        yield from (listener.fileno() for listener in held if listener is not None)
        yield from self.context.handover.inboxes.descriptors()
        yield from self.context.cluster.mailboxes.descriptors()

    def _close_in_worker(self, kept: list[Any]) -> None:
        """In a worker: an address that the arbiter gives up must be free."""
        self.monitor.close()
        for listener in self._all_listeners():
            if listener not in kept:
                listener.close()

    def _become_monitor(self) -> None:
        """In the monitor's process, where the signals that it handles are blocked. Those that end it do
        so at once, USR1 waits for its handler, and those that are meant for the arbiter do nothing."""
        for name in self.SIGNALS:
            signal.signal(name, signal.SIG_DFL if name in HANDLED else signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        for listener in self._all_listeners():
            listener.close()
        hosts.set_title(f"monitor [{self.proc_name}]")
        util.set_owner_process(self.cfg.uid, self.cfg.gid, initgroups=self.cfg.initgroups)

    def _become_helper(self) -> None:
        """In a process that tries a configuration or looks a name up."""
        self._close_in_worker([])
        hosts.set_title(f"helper [{self.proc_name}]")

    # --- when one has ended

    def reap_workers(self) -> None:
        while ended := dict(_ended_children()):
            self._look_after(ended)
            for pid, status in ended.items():
                with self.guarded("the exit of a child"):
                    self._reaped(pid, status)

    def _look_after(self, ended: Collection[int]) -> None:
        """See what the workers among them have left, before a hook starts a process of its own."""
        for pid in ended:
            self.orphans.reaped(pid)
        workers = [self.WORKERS[pid].identity for pid in ended if pid in self.WORKERS]
        if workers:
            others = f" and {len(workers) - 1} more" if workers[1:] else ""
            self.orphans.look(f"{workers[0]}{others}")

    def _reaped(self, pid: int, status: int) -> None:
        worker = self.WORKERS.pop(pid, None)
        if worker is not None:
            self.worker_processes.reaped(worker, status)
            self.orphans.spare()
        elif pid == self.monitor.pid:
            self.monitor.reaped(status)
        elif pid == self.reexec_pid:
            self.reexec_pid = 0
            self.orphans.spare()  # what it has left is no worker's of ours
            self.log.warning("the arbiter that USR2 started has exited (pid=%s); this one keeps running", pid)
        elif pid == self.dirty_arbiter_pid:
            self.dirty_arbiter_pid = 0
            self.dirty_arbiter = None
        elif pid in self.context.helpers:
            self.context.helpers.pop(pid)()
        else:
            self.log.debug("reaped a child that is not a worker (pid=%s)", pid)

    def _is_known(self, pid: int) -> bool:
        """Whether this process is one that the arbiter has started, other than by a hook."""
        others = (self.monitor.pid, self.reexec_pid, self.dirty_arbiter_pid)
        return pid in self.WORKERS or pid in others or pid in self.context.helpers


def _ended_children() -> Iterator[tuple[int, int]]:
    """The pid and the status of each that has ended, reaped."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended
