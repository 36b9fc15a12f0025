"""Starts the arbiter: settings, pidfile, listeners. A mistake of the user ends the start in one line.

A part of `multicore_server.arbiter.arbiter.Arbiter`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import resource
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import gunicorn.arbiter

from multicore_server.arbiter import listeners, resolution
from multicore_server.arbiter.hooks import HookError
from multicore_server.arbiter.launch import launch_of
from multicore_server.machine.directories import check_makable
from multicore_server.settings.table import SettingError, Settings


class StartingArbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    LISTENERS: list[Any]
    pidfile: Any
    settings: Settings

    def start(self) -> None:
        if (launch := launch_of(self)) is not None:
            launch.begin()
        self.START_CTX["args"] = [sys.executable, *sys.orig_argv[1:]]  # sys.argv has lost a -m
        self.START_CTX["cwd"] = self.cfg.settings["chdir"].default  # --chdir is relative to it, in USR2's too
        try:
            self.settings = resolution.resolve_settings(self.app)
        except SettingError as exc:
            self._refuse(str(exc))
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        try:
            super().start()
        except listeners.BindError as exc:
            self._refuse(str(exc))
        except HookError as exc:
            self._refuse(str(exc), exc.__cause__)
        except (OSError, RuntimeError) as exc:  # gunicorn's, most likely about the pidfile
            self._refuse(f"cannot start: {_of_pidfile(self.cfg.pidfile) or exc}")
        except SystemExit:
            self._clean_up()
            raise
        try:
            self._open()
        except OSError as exc:  # no descriptors or no memory for what workers share
            self._refuse(f"cannot start: {exc}{_advice(exc)}")

    def _refuse(self, reason: str, cause: BaseException | None = None) -> NoReturn:
        """A mistake of the user's: one line, exit status 1, nothing left behind. ``cause`` is an exception in
        the user's own code, whose traceback is wanted."""
        self.log.error("%s", reason, exc_info=cause)
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
        # As nginx does: whoever started the server may have blocked some, and workers inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self.SIGNALS, signal.SIGCHLD})
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
        raise NotImplementedError


def _of_pidfile(path: str | None) -> str:
    """What gunicorn tells with the name of a temporary file; empty where it is not that."""
    try:
        if path is not None:
            check_makable(Path(path))
    except OSError as exc:
        if isinstance(exc, PermissionError):  # of the others gunicorn's words are right
            return f"pidfile: {path!r} cannot be written: {exc.strerror}"
    return ""


def _advice(exc: OSError) -> str:
    if exc.errno != errno.EMFILE:
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f" (the hard limit of open files is {limit}: raise it to 1024 or more)"
