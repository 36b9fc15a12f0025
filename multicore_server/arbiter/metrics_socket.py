"""The Unix socket where workers ask the monitor for `metrics_path`; no other process can reach it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multicore_server.machine.directories import remove_with_directory
from multicore_server.monitor.address import BACKLOG

PLACES = ("", "/dev/shm")  # noqa: S108 - for a moment, in a directory of mkdtemp; "": the usual one


class MetricsSocket:
    """A listening socket without a name.

    Workers may run as another user than the arbiter, and as other users than that one after a reload. So
    they inherit a descriptor of the socket's file (O_PATH, see open(2)), and connect to it through
    /proc/self/fd. The file itself is in a directory of mode 0700 while it is made, and is then removed: no
    other process finds it, and nothing is left behind.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._complained = False
        self._file = -1  # the descriptor
        self.listener: socket.socket | None = None

    @property
    def address(self) -> str:
        """Where a worker that inherits the descriptor connects to; empty while nobody listens."""
        return "" if self.listener is None else f"/proc/self/fd/{self._file}"

    def bind(self) -> None:
        """Listen. What keeps it from that is logged, once."""
        try:
            if sys.platform != "linux":
                raise OSError("it needs Linux")
            self.listener, self._file = _listen()
        except OSError as exc:
            if not self._complained:
                self._log.error("metrics_path cannot be served: %s", exc)
            self._complained = True

    def close_listener(self) -> None:
        """In a worker, which keeps the descriptor of the file."""
        if self.listener is not None:
            self.listener.close()

    def close(self) -> None:
        """Idempotent."""
        if self.listener is not None:
            self.listener.close()
            os.close(self._file)
            self.listener, self._file = None, -1


def _listen() -> tuple[socket.socket, int]:
    """The socket and a descriptor of its file, in the first place that takes it: the usual one may not be
    writable, or have a path that is too long for a socket. Raises OSError where none does."""
    for place in PLACES[:-1]:
        with contextlib.suppress(OSError):
            return _listen_in(place)
    return _listen_in(PLACES[-1])


def _listen_in(place: str) -> tuple[socket.socket, int]:
    with _private_path(place) as path, contextlib.ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        path.chmod(0o666)  # of those who can reach it, whoever they are
        listener.listen(BACKLOG)
        file = os.open(path, os.O_PATH)
        undo.pop_all()
    return listener, file


@contextlib.contextmanager
def _private_path(place: str) -> Iterator[Path]:
    """In a directory of mode 0700, which is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="multicore-server-", dir=place or None)) / "s"
    try:
        yield path
    finally:
        remove_with_directory(path)
