"""Where the monitor listens: bound by the arbiter, so that addresses survive the monitor and privileges.

A taken address is logged once and tried again; serving waits neither for it nor for a name server.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.arbiter.forked_call import ForkedCall
from multicore_server.arbiter.system import System
from multicore_server.monitor import address

RETRY = 1.0  # seconds between two attempts at an address that is taken
REST = 30  # times as long as looking its name up has taken, where that is more
Ask = Callable[[Callable[[], str], Callable[[bool, str], None]], ForkedCall]


class MonitorAddresses:
    """``on_change`` is called when an address is bound or given up. ``speaks`` says whether to log one that
    is taken. ``ask`` lets a forked child answer, see `ForkedCall`: it looks names up."""

    def __init__(
        self,
        log: Any,
        system: System,
        metrics_bind: str,
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
            self._give_up()
            self._metrics_bind, self._complaint = metrics_bind, ""
            self.due = 0.0
            self.on_change()

    def bind_if_due(self, now: float) -> None:
        if self.due is None or self.due > now:
            return
        self.due = None
        if self._lookup is not None:
            self._lookup.tick(now)
        elif self._metrics_bind and address.is_numeric(self._metrics_bind):
            self._bind(self._metrics_bind)
        elif self._metrics_bind:
            self._look_up()

    def _look_up(self) -> None:
        name, began = self._metrics_bind, self._system.monotonic()

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
            self._try_again(str(exc).replace(place, self._metrics_bind))
            return
        if self._complaint:
            self._log.info("metrics_bind: listening on %s now", self._metrics_bind)
        self._complaint = ""
        self.on_change()

    def _try_again(self, text: str) -> None:
        """Later. Say why, once; an arbiter that USR2 has started does not: the old one still has the
        address."""
        self.due = self._system.monotonic() + max(RETRY, self._took * REST)
        if text != self._complaint and self._speaks():
            self._log.error("%s; trying again", text)
            self._complaint = text

    def _give_up(self) -> None:
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup.cancel()
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
        self._give_up()
        if self.inner is not None:
            self.inner.close()
        if self.command_listener is not None:
            address.unbind(self.command_listener, self._command_path)
        self.inner = self.command_listener = None
