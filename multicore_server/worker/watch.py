"""Decides what a worker does when its own event loop is blocked."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable
from typing import Any

from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.reading import reading_of
from multicore_server.connections.rescue import Rescue
from multicore_server.connections.state import ConnectionsState
from multicore_server.worker.blocked import Blocked
from multicore_server.worker.long_requests import LongRequests
from multicore_server.worker.standstill import is_in_app
from multicore_server.worker.watcher import Watcher

logger = logging.getLogger("gunicorn.error")


class LoopWatch:
    """To be made in the loop's thread. ``make_dispatcher`` makes one for another thread; None where nobody
    places connections. ``answer`` is called by the thread while the loop is blocked: who asks for the
    stacks gets them."""

    def __init__(
        self,
        state: ConnectionsState,
        blocked: Blocked,
        make_dispatcher: Callable[[], Dispatcher] | None,
        answer: Callable[[], object],
        long_requests: LongRequests | None = None,
    ) -> None:
        self._thread = threading.get_ident()
        self._blocked = blocked
        self._answer = answer
        self._long_requests = long_requests
        self._rescue = self._make_rescue(state, make_dispatcher)
        self._watcher = Watcher(self._look)

    def _make_rescue(
        self, state: ConnectionsState, make_dispatcher: Callable[[], Dispatcher] | None
    ) -> Rescue | None:
        loop: Any = state.loop
        try:
            reading = None if make_dispatcher is None else reading_of(loop)
        except OSError as exc:  # no descriptors
            logger.warning("idle connections stay with this worker while its event loop is blocked: %s", exc)
            return None
        if reading is None or make_dispatcher is None:
            return None
        return Rescue(state, make_dispatcher(), reading, self._is_in_app, loop.call_soon_threadsafe)

    def _is_in_app(self) -> bool:
        return is_in_app(sys._current_frames().get(self._thread))

    def start(self, identity: str) -> None:
        try:
            self._watcher.start()
        except RuntimeError as exc:  # no memory, or no more processes for this user
            logger.warning("%s does not watch its event loop: %s", identity, exc)

    def end(self) -> None:
        """Idempotent."""
        self._watcher.end()

    def expect(self, beat: float | None) -> None:
        self._watcher.expect(beat)

    def over(self, seconds: float, used: float) -> None:
        self._blocked.over(seconds, used)

    def _look(self, seconds: float) -> None:
        """By the thread: connections first, as they wait."""
        if self._rescue is not None:
            self._rescue.run()
        self._blocked.look(seconds)
        self._answer()
        if self._long_requests is not None:
            self._long_requests.look()


def patience(warning: float | None, timeout: float, *, inline: bool) -> float | None:
    """Seconds from which a blocked loop is worth a warning. An app that runs inline blocks it by nature: half
    of gunicorn's timeout."""
    if warning is None or not inline:
        return warning
    return max(warning, timeout / 2) if timeout else math.inf
