"""Where the monitor listens: bound by the arbiter, so that addresses survive the monitor and privileges.

A taken address is logged once and tried again; serving never waits for it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.arbiter.metrics_socket import MetricsSocket
from multicore_server.arbiter.system import System
from multicore_server.monitor import address
from multicore_server.settings.table import Settings

RETRY = 1.0  # seconds between two attempts at an address that is taken
REST = 30  # times as long as an attempt has taken, where that is more


class MonitorAddresses:
    """``on_change`` is called when an address is bound or given up. ``speaks`` says whether to log one that
    is taken."""

    def __init__(
        self,
        log: Any,
        system: System,
        settings: Settings,
        speaks: Callable[[], bool],
    ) -> None:
        self._log = log
        self._system = system
        self.on_change: Callable[[], None] = lambda: None
        self._speaks = speaks
        self._settings = settings
        self._complaint = ""  # about the address that is taken, as it was logged
        self.due: float | None = 0.0  # when the next attempt is due
        self._file: Path | None = None  # of the listener
        self.listener: socket.socket | None = None
        self._command_path: Path | None = None
        self.command_listener = self._bind_command()
        self.metrics_socket = MetricsSocket(log)

    def _bind_command(self) -> socket.socket | None:
        try:
            path = address.command_path(self._system.getpid())
            listener = address.bind_command(path)
        except OSError as exc:
            self._log.error("%s; going on without commands", exc)
            return None
        self._command_path = path
        return listener

    def metrics_address(self, settings: Settings) -> str:
        """Where a worker with these settings asks for `metrics_path`; empty if it does not, or cannot."""
        if settings.metrics_path is None:
            return ""
        if self.metrics_socket.listener is None:
            self.metrics_socket.bind()
            if self.metrics_socket.listener is not None:
                self.on_change()
        return self.metrics_socket.address

    @property
    def hosts(self) -> frozenset[str]:
        """The names that may stand in the Host header of a request over TCP."""
        host, _, _ = self._settings.metrics_bind.rpartition(":")
        return self._settings.metrics_hosts | {host}

    def configure(self, settings: Settings) -> None:
        """A reload has changed the settings."""
        old, self._settings = self._settings, settings
        if settings.metrics_bind != old.metrics_bind:
            self._unbind()
            self._complaint = ""
            self.due = 0.0
        unused = settings.metrics_path is None and self.metrics_socket.listener is not None
        if unused:
            self.metrics_socket.close()
        # Workers with a `metrics_path` have the socket bound when they are forked.
        if unused or (settings.metrics_bind, settings.metrics_hosts) != (old.metrics_bind, old.metrics_hosts):
            self.on_change()

    def bind_if_due(self, now: float) -> None:
        if self.due is not None and self.due <= now:
            self.due = None
            if self._settings.metrics_bind:
                self._bind()

    def _bind(self) -> None:
        began = self._system.monotonic()
        try:
            self.listener = address.bind_metrics(self._settings.metrics_bind)
            self._file = address.file_of(self._settings.metrics_bind)
        except OSError as exc:
            now = self._system.monotonic()
            # A name that is slow to look up keeps the arbiter's loop waiting.
            self.due = now + max(RETRY, (now - began) * REST)
            self._complain(str(exc))
            return
        if self._complaint:
            self._log.info("metrics_bind: listening on %s now", self._settings.metrics_bind)
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
        for listener in (self.listener, self.command_listener):
            if listener is not None:
                listener.close()
        self.metrics_socket.close_listener()

    def end(self) -> None:
        """Give all addresses up; idempotent."""
        self._unbind()
        self.metrics_socket.close()
        if self.command_listener is not None:
            address.unbind(self.command_listener, self._command_path)
        self.command_listener = None
