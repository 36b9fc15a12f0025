"""Where the monitor listens: bound by the arbiter, so that addresses survive the monitor and privileges.

A taken address is logged once and tried again; serving never waits for it.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.arbiter.system import System
from multicore_server.monitor import address

RETRY = 1.0  # seconds between two attempts at an address that is taken
REST = 30  # times as long as an attempt has taken, where that is more


class MonitorAddresses:
    """``on_change`` is called when an address is bound or given up. ``speaks`` says whether to log one that
    is taken."""

    def __init__(
        self,
        log: Any,
        system: System,
        metrics_bind: str,
        speaks: Callable[[], bool],
    ) -> None:
        self._log = log
        self._system = system
        self.on_change: Callable[[], None] = lambda: None
        self._speaks = speaks
        self._metrics_bind = metrics_bind
        self._complaint = ""  # about the address that is taken, as it was logged
        self.due: float | None = 0.0  # when the next attempt is due
        self._file: Path | None = None  # of the listener
        self.listener: socket.socket | None = None
        self._command_path: Path | None = None
        self.command_listener = self._bind_command()
        self.inner = self._bind_inner()

    def _bind_command(self) -> socket.socket | None:
        try:
            path = address.command_path(self._system.getpid())
            listener = address.bind_command(path)
        except OSError as exc:
            self._log.error("%s; going on without commands", exc)
            return None
        self._command_path = path
        return listener

    def _bind_inner(self) -> socket.socket | None:
        """Where workers ask for `metrics_path`: an abstract socket, which has no owner, see unix(7)."""
        if sys.platform != "linux":
            return None
        name = f"\0multicore-server-{self._system.getpid()}-{random.getrandbits(64):x}"
        listener = None
        try:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen(address.BACKLOG)
        except OSError as exc:
            if listener is not None:
                listener.close()
            self._log.error("metrics_path cannot be served: %s", exc)
            return None
        return listener

    @property
    def inner_address(self) -> str:
        """The address at which workers ask the monitor; empty if there is none."""
        return "" if self.inner is None else os.fsdecode(self.inner.getsockname())

    @property
    def readable(self) -> list[socket.socket]:
        """The listeners that only read."""
        return [listener for listener in (self.listener, self.inner) if listener is not None]

    def configure(self, metrics_bind: str) -> None:
        """A reload has changed the settings."""
        if metrics_bind != self._metrics_bind:
            self._unbind()
            self._metrics_bind, self._complaint = metrics_bind, ""
            self.due = 0.0
            self.on_change()

    def bind_if_due(self, now: float) -> None:
        if self.due is not None and self.due <= now:
            self.due = None
            if self._metrics_bind:
                self._bind()

    def _bind(self) -> None:
        began = self._system.monotonic()
        try:
            self.listener = address.bind_metrics(self._metrics_bind)
            self._file = address.file_of(self._metrics_bind)
        except OSError as exc:
            now = self._system.monotonic()
            # A name that is slow to look up keeps the arbiter's loop waiting.
            self.due = now + max(RETRY, (now - began) * REST)
            self._complain(str(exc))
            return
        if self._complaint:
            self._log.info("metrics_bind: listening on %s now", self._metrics_bind)
        self._complaint = ""
        self.on_change()

    def _complain(self, text: str) -> None:
        """Once; and not by an arbiter that USR2 has started: the old one has the address until it ends."""
        if text != self._complaint and self._speaks():
            self._log.error("%s; trying again", text)
            self._complaint = text

    def _unbind(self) -> None:
        if self.listener is not None:
            address.unbind(self.listener, self._file)
            self.listener = self._file = None

    def close(self) -> None:
        """In a child that is not the monitor."""
        for listener in (self.listener, self.inner, self.command_listener):
            if listener is not None:
                listener.close()

    def end(self) -> None:
        """Give all addresses up; idempotent."""
        self._unbind()
        if self.inner is not None:
            self.inner.close()
        if self.command_listener is not None:
            address.unbind(self.command_listener, self._command_path)
        self.inner = self.command_listener = None
