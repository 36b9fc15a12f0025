"""Writes every thread's stack to the error log on SIGABRT, so that a hang leaves evidence."""

from __future__ import annotations

import faulthandler
import logging
import os


class AbortStacks:
    """The handlers of SIGABRT, and of the signals of a crash, that write stacks; the worker's own goes on
    after that."""

    def __init__(self) -> None:
        self._descriptor: int | None = None  # where they are written to

    def write_to(self, log: logging.Logger) -> None:
        """To the stream of the log's first handler that has a descriptor; else to stderr."""
        for handler in log.handlers:
            if isinstance(handler, logging.StreamHandler):
                try:  # a descriptor of our own: an app's log configuration closes the log's
                    descriptor = os.dup(handler.stream.fileno())
                except (OSError, ValueError):  # a stream without a file descriptor
                    continue
                self._use(descriptor)
                return
        faulthandler.enable()

    def _use(self, descriptor: int) -> None:
        faulthandler.enable(descriptor)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor
