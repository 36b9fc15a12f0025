"""Handles the arbiter's signals: they wake its loop and become observations of the fleet.

A part of `multicore_server.arbiter.arbiter.Arbiter`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeAlias

from multicore_server.arbiter import logs, systemd
from multicore_server.arbiter.forks import forks
from multicore_server.arbiter.interruption import ENDS, Interruption
from multicore_server.arbiter.monitor_process import MonitorProcess
from multicore_server.arbiter.orphans import Orphans
from multicore_server.arbiter.starting import StartingArbiter
from multicore_server.arbiter.systemd import WATCHED, service
from multicore_server.fleet import events as ev
from multicore_server.fleet.fleet import Fleet
from multicore_server.machine.children import become_subreaper

Handler: TypeAlias = Callable[[Any], None]
RETRY = 0.05  # seconds
QUIET = 60.0  # seconds between two log lines about the same part that fails


def _guarded(handler: Handler) -> Handler:
    """gunicorn's loop calls it, and ends the server where it raises."""

    @functools.wraps(handler)
    def handle(arbiter: SignalledArbiter) -> None:
        with arbiter.guarded(handler.__name__):
            handler(arbiter)

    return handle


def _is_handling(frame: FrameType | None) -> bool:
    """Whether the signal has interrupted the handler of another one. Python runs a handler in the middle of
    another, also before its first statement."""
    while frame is not None:
        if frame.f_code is SignalledArbiter.signal.__code__:
            return True
        frame = frame.f_back
    return False


def _adopt() -> None:
    """In USR2's arbiter, before its exec: what its config file, its app and its hooks start in the background
    would become a child of ours otherwise, and be taken for what a worker of ours has left."""
    with contextlib.suppress(OSError):  # as in `Orphans`
        become_subreaper()


class SignalledArbiter(StartingArbiter):
    fleet: Fleet
    monitor: MonitorProcess
    orphans: Orphans
    reexec_pid: int
    dirty_arbiter_pid: int
    interruption = Interruption()  # of what the arbiter's loop does
    _quiet_until: dict[str, float]  # by part

    def observe(self, observation: ev.Observation) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def guarded(self, part: str) -> Iterator[None]:
        """A part that fails (there is no memory, say) costs its turn and one log line a minute, and never the
        server. A child whose own end has failed gets no further: it would go on as a second arbiter."""
        try:
            yield
        except Exception:
            if os.getpid() != self.pid:
                os._exit(1)
            now = time.monotonic()
            if now >= self._quiet_until.get(part, 0.0):
                self._quiet_until[part] = now + QUIET
                with contextlib.suppress(Exception):  # no memory for this either
                    self.log.exception("%s could not be handled; the arbiter keeps running", part)

    def signal(self, sig: int, frame: Any) -> None:
        """Queue it and wake the loop. A child that has no handlers of its own yet ends, as by default."""
        if os.getpid() == self.pid:
            self.SIG_QUEUE.put_nowait(sig)
            with contextlib.suppress(BlockingIOError):  # full: the loop is awake
                os.write(self._wake_writer, b".")
            self.interruption.hear(sig, _is_handling(frame))
        elif sig in ENDS:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)

    signal_chld = signal

    @_guarded
    def handle_hup(self) -> None:
        self.log.info("Hang up: %s", self.master_name)
        self.observe(ev.Reload())
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGHUP)

    @_guarded
    def handle_usr1(self) -> None:
        logs.reopen_log(self.log, self.cfg)
        self.monitor.reopen_log()
        self.kill_workers(signal.SIGUSR1)
        if self.dirty_arbiter_pid:
            self.kill_dirty_arbiter(signal.SIGUSR1)

    def kill_worker(self, pid: int, sig: int) -> None:
        """gunicorn's raises what it does not expect, and that would end the server."""
        try:
            os.kill(pid, sig)
        except ProcessLookupError:  # it has ended meanwhile
            return
        except OSError as exc:  # an arbiter without CAP_KILL, and workers of another user
            self.log.error("cannot send %s to pid=%s: %s", signal.Signals(sig).name, pid, exc.strerror)

    @_guarded
    def handle_usr2(self) -> None:
        super().handle_usr2()

    def handle_term(self) -> None:
        self._end_now_or_soon(signal.SIGTERM)

    def handle_int(self) -> None:
        self._end_now_or_soon(signal.SIGINT)

    def _end_now_or_soon(self, number: int) -> None:
        """The order to end is not lost: where it cannot be obeyed now, it comes again."""
        ended = False
        with self.guarded("the order to end"):
            self.end(number == signal.SIGTERM)
            ended = True
        if not ended:
            time.sleep(RETRY)
            self.signal(number, None)

    handle_quit = handle_int

    def end(self, graceful: bool) -> None:
        """Begin to end: with the requests in progress answered, or without."""
        if not self.reexec_pid:
            service.stopping()
        elif not self.fleet.stopping:  # the service goes on
            self.monitor.addresses.hand_over()
        self.observe(ev.Stop(graceful))

    @_guarded
    def handle_ttin(self) -> None:
        self.observe(ev.Scale(self.fleet.workers + 1))

    @_guarded
    def handle_ttou(self) -> None:
        if self.fleet.workers > 1:
            self.observe(ev.Scale(self.fleet.workers - 1))

    @_guarded
    def handle_winch(self) -> None:
        if self.cfg.daemon:
            self.log.info("graceful stop of workers")
            self.observe(ev.Scale(0))
        else:
            self.log.debug("SIGWINCH ignored. Not daemonized")

    def reexec(self) -> None:
        self.cfg.env_orig.pop(WATCHED, None)  # it names this process
        try:
            with forks.own(_adopt):  # it is given the listeners
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
        try:
            super().maybe_promote_master()
        except Exception as exc:  # noqa: BLE001 - a directory that is gone, a pidfile of another server
            self.log.error("the pidfile cannot be renamed: %s", exc)
        if was and not self.master_pid:
            service.promoted()
            self.orphans.spare()  # it has a helper for a moment
