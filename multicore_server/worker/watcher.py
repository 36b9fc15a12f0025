"""A thread of a worker that wakes when the heart is late, and sees what blocks the event loop.

While the heart beats quickly, the thread checks five times a second whether the next beat is overdue. While
the worker rests, it sleeps. It needs the GIL, so what holds the GIL also stops this thread.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable

from multicore_server.ipc.heartbeat import LATE

AGAIN = 0.05  # seconds between two looks at a loop that is blocked
PAUSED = 0.5  # seconds that the thread itself was late: the machine or the process stood still, not the loop
QUIET = 60.0  # seconds between two log lines about a failure of its own

logger = logging.getLogger("gunicorn.error")


class Watcher:
    """``look`` is called with the seconds by which a beat is overdue, again and again until it comes."""

    def __init__(self, look: Callable[[float], object]) -> None:
        self._look = look
        self._late_at = math.inf  # of CLOCK_MONOTONIC
        self._sleeps = False
        self._woken = threading.Event()
        self._ended = False
        self._complain_due = 0.0

    def start(self) -> None:
        """Raises RuntimeError where there can be no more threads."""
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def end(self) -> None:
        self._ended = True
        self._woken.set()

    def expect(self, beat: float | None) -> None:
        """At each beat: when the next one is due. None: the worker rests, and nothing is expected."""
        self._late_at = math.inf if beat is None else beat + LATE
        if self._sleeps and beat is not None:
            self._woken.set()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while not self._ended:
            try:
                self._watch()
            except Exception as exc:  # noqa: BLE001, PERF203 - no memory, or a mistake of ours
                self._complain(exc)
                time.sleep(1)

    def _watch(self) -> None:
        planned = self._late_at
        if not self._pause(planned - time.monotonic()):
            return
        now = time.monotonic()
        if planned == self._late_at and now - planned < PAUSED:
            while not self._ended and self._late_at == planned:
                self._look(time.monotonic() - planned + LATE)
                time.sleep(AGAIN)
        else:
            time.sleep(AGAIN)  # it has beaten, or it gets time to: as long as this thread was late

    def _pause(self, seconds: float) -> bool:
        """False where it was ended early."""
        self._sleeps = seconds == math.inf
        if self._sleeps and self._late_at != math.inf:  # it has changed meanwhile
            self._sleeps = False
            return False
        woken = self._woken.wait(None if self._sleeps else max(seconds, 0.0))
        self._sleeps = False
        self._woken.clear()
        return not woken

    def _complain(self, exc: Exception) -> None:
        now = time.monotonic()
        if now >= self._complain_due:
            self._complain_due = now + QUIET
            logger.warning("the watcher of this worker failed (%s) and continues", exc, exc_info=exc)
