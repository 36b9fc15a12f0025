"""Lets urgent signals interrupt the user's code: a configuration that loads slowly is aborted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

ENDS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})  # orders to end the server
URGENT = ENDS | {signal.SIGCHLD}


class Interrupted(BaseException):
    """Raised in the middle of the user's code, by a signal's handler; that code may be run again later."""


class Interruption:
    def __init__(self) -> None:
        self._allowed = False
        self._urgent = False  # one has been heard in this block

    def hear(self, number: int, nested: bool) -> None:
        """In a signal's handler, when the signal is queued. Raises Interrupted where that is allowed.

        ``nested``: this handler has interrupted that of another signal, which may not be queued yet: only the
        outer one raises.
        """
        self._urgent = self._urgent or number in URGENT
        if self._allowed and self._urgent and not nested:
            self._allowed = False
            raise Interrupted

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """One urgent signal ends what is in this block."""
        self._urgent = False
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
