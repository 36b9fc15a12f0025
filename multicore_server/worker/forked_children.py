"""Keeps processes that the app forks (multiprocessing, ProcessPoolExecutor, os.fork) out of serving.

They inherit every descriptor of their worker. If they kept the listeners, they would hold the port after a
crash. If they kept a connection that its worker has closed, it would stay open for its client.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from multicore_server.machine.descriptors import lead_nowhere

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT)


class ForkedChildren:
    """``descriptors`` tells which are the worker's alone, at the time of a fork."""

    def __init__(self, descriptors: Callable[[], Iterable[int]]) -> None:
        self._descriptors = descriptors
        self._handlers: dict[int, Any] = {}
        self._forking = threading.local()  # several threads may fork

    def watch(self) -> None:
        """For the rest of this process's life: there is no way back from `os.register_at_fork`."""
        os.register_at_fork(
            before=self.block, after_in_parent=self.unblock, after_in_child=self._become_child
        )

    def note_handlers(self) -> None:
        """The signal handlers of now are the worker's; an app's own are for its children, too."""
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def block(self) -> None:
        """Before a fork: a signal to the child that finds the worker's handlers there would reach the
        worker, by the descriptor that wakes its loop."""
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def unblock(self) -> None:
        """What has come meanwhile comes now."""
        mask = getattr(self._forking, "mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _become_child(self) -> None:
        try:
            self.leave_worker()
        finally:
            self.unblock()

    def leave_worker(self) -> None:
        """In a child: signals have their default actions, and nothing of the worker's is within reach."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == handler:
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)
        lead_nowhere(self._descriptors())


def waited_for() -> list[int]:
    """The pids of the children for which multiprocessing makes this process wait at its end."""
    module: Any = sys.modules.get("multiprocessing.process")
    if module is None:
        return []
    return sorted(child.pid for child in module.active_children() if not child.daemon)
