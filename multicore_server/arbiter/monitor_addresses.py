"""Binds the monitor's addresses in the arbiter, so that they survive the monitor and a change of user.

A taken address is logged once and tried again. Serving waits neither for it nor for a name server.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.arbiter.forked_call import ForkedCall
from multicore_server.arbiter.metrics_socket import MetricsSocket
from multicore_server.arbiter.system import System
from multicore_server.monitor import address
from multicore_server.settings.table import Settings

RETRY = 1.0  # seconds between two attempts at an address that is taken
RETRY_OF_SUCCESSOR = 0.25  # the old arbiter gives it up, and probes and scrapers wait
REST = 30  # times as long as looking its name up has taken, where that is more
Ask = Callable[[Callable[[], str], Callable[[bool, str], None]], ForkedCall]


class MonitorAddresses:
    """``on_change`` is called when an address is bound or given up. ``speaks`` says whether to log one that
    is taken. ``ask`` lets a forked child answer, see `ForkedCall`: it looks names up."""

    def __init__(
        self,
        log: Any,
        system: System,
        settings: Settings,
        speaks: Callable[[], bool],
        ask: Ask,
    ) -> None:
        self._log = log
        self._system = system
        self.on_change: Callable[[], None] = lambda: None
        self._speaks = speaks
        self._ask = ask
        self._lookup: ForkedCall | None = None
        self._took = 0.0  # seconds, by the last lookup
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
            self._log.error("%s; continuing without commands", exc)
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
            self._give_up()
            self._complaint = ""
            self.due = 0.0
        unused = settings.metrics_path is None and self.metrics_socket.listener is not None
        if unused:
            self.metrics_socket.close()
        # Workers with a `metrics_path` have the socket bound when they are forked.
        if unused or (settings.metrics_bind, settings.metrics_hosts) != (old.metrics_bind, old.metrics_hosts):
            self.on_change()

    def bind_if_due(self, now: float) -> None:
        if self.due is None or self.due > now:
            return
        self.due = None
        name = self._settings.metrics_bind
        if self._lookup is not None:
            self._lookup.tick(now)
        elif name and address.is_numeric(name):
            self._bind(name)
        elif name:
            self._look_up(name)

    def _look_up(self, name: str) -> None:
        began = self._system.monotonic()

        def done(ok: bool, text: str) -> None:
            self._lookup = self.due = None
            self._took = self._system.monotonic() - began
            if ok:
                self._bind(text)
            else:
                self._try_again(f"metrics_bind: cannot listen on {name}: {text}")

        try:
            self._lookup = self._ask(lambda: address.resolve(name), done)
        except OSError as exc:  # no process, no descriptor
            self._try_again(f"metrics_bind: cannot listen on {name}: {exc.strerror}")
            return
        self.due = self._lookup.due

    def _bind(self, place: str) -> None:
        """``place`` is the address, with a number for its name."""
        try:
            self.listener = address.bind_metrics(place)
            self._file = address.file_of(place)
        except OSError as exc:
            self._try_again(str(exc).replace(place, self._settings.metrics_bind))
            return
        if self._complaint:
            self._log.info("metrics_bind: listening on %s now", self._settings.metrics_bind)
        self._log.info("%s", address.pages(self._settings.metrics_bind, self.listener))
        self._complaint = ""
        self.on_change()

    def _try_again(self, text: str) -> None:
        """Later. Say why, once; an arbiter that USR2 has started does not: the old one still has the
        address."""
        retry = RETRY if self._speaks() else RETRY_OF_SUCCESSOR
        self.due = self._system.monotonic() + max(retry, self._took * REST)
        if text != self._complaint and self._speaks():
            self._log.error("%s; trying again", text)
            self._complaint = text

    def hand_over(self) -> None:
        """Leave the address to the arbiter that USR2 has started: it serves, and this one only drains."""
        self._give_up()
        self.due = None
        self.on_change()

    def _give_up(self) -> None:
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup.cancel()
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
        self._give_up()
        self.metrics_socket.close()
        if self.command_listener is not None:
            address.unbind(self.command_listener, self._command_path)
        self.command_listener = None
