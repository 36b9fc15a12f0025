"""Lets urgent signals interrupt the user's code: a configuration that loads slowly is aborted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

# Of the server's end, and of a worker's.
URGENT = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD})


class Interrupted(BaseException):
    """Raised in the middle of the user's code, by a signal's handler; that code may be run again later."""


class Interruption:
    def __init__(self) -> None:
        self._allowed = False

    def hear(self, number: int) -> None:
        """In a signal's handler, when the signal is queued. Raises Interrupted where that is allowed."""
        if self._allowed and number in URGENT:
            self._allowed = False
            raise Interrupted

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """One urgent signal ends what is in this block."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
