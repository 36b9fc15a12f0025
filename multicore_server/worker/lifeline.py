"""Tells a worker that its arbiter is gone, also while it boots or its event loop is blocked.

Only the arbiter holds the writing end of a pipe, so its exit, whatever the cause, is an end of file. A thread
waits for it. Asleep in a read, this thread holds no lock and costs nothing, and the app's forks do not have
it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable

from multicore_server.machine.descriptors import lead_nowhere

HEARD = 1.0  # seconds in which a loop that runs has begun to drain

logger = logging.getLogger("gunicorn.error")


class Lifeline:
    """``reader`` is the pipe's end; ``identity`` names the worker in the log; ``end`` ends the process.

    ``grace``: seconds that a worker has from the arbiter's end to its own.
    """

    def __init__(self, reader: int, identity: str, grace: float, end: Callable[[int], object]) -> None:
        self._reader = reader
        self._identity = identity
        self._grace = grace
        self._end = end
        self._heard = threading.Event()
        self._drain: Callable[[], None] | None = None
        self._listeners: Iterable[socket.socket] = ()

    def watch(self) -> None:
        """Call it in the worker, after the fork."""
        thread = threading.Thread(target=self._wait, name="lifeline", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # no memory, or no more processes for this user
            logger.warning("%s does not watch its arbiter: %s", self._identity, exc)

    def serve(self, drain: Callable[[], None], listeners: Iterable[socket.socket]) -> None:
        """The worker serves from now on: ``drain``, which may be called from any thread, begins its end, and
        `heard` is to be called there."""
        self._listeners = listeners
        self._drain = drain

    def heard(self) -> None:
        """The loop runs and drains."""
        self._heard.set()

    def _wait(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        try:
            os.read(self._reader, 1)
        except OSError:  # closed by somebody else: nothing can be told from it
            return
        if self._drain is None:
            logger.warning("%s the arbiter is gone; exiting", self._identity)
            os._exit(1)
        logger.warning("%s the arbiter is gone; draining", self._identity)
        self._drain()
        if not self._heard.wait(HEARD):
            text = "%s the app blocks the event loop; closing the listeners, exiting in %s s"
            logger.warning(text, self._identity, self._grace)
            lead_nowhere(listener.fileno() for listener in self._listeners)
        time.sleep(self._grace)
        self._end(1)
