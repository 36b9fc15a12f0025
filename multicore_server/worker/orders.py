"""Reads the arbiter's orders. Its signals only wake: anybody may send one, and an app may have taken it."""

from __future__ import annotations

import logging

from multicore_server.ipc.channel import WorkerChannel
from multicore_server.ipc.messages import EndOrder, MessageError

logger = logging.getLogger("gunicorn.error")


class Orders:
    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel
        self._end = self._quick = False  # as ordered
        self._taken: EndOrder | None = None
        self.ended = False  # the arbiter is gone; the lifeline's to tell

    def read(self) -> EndOrder | None:
        """The harshest order that has come so far. Signal handlers call it, too."""
        try:
            for order in self._channel.orders():
                self._end = True
                self._quick = self._quick or order.quick
        except EOFError:
            self.ended = True
        except MessageError:
            logger.exception("an order of the arbiter's cannot be read")
        return EndOrder(self._quick) if self._end else None

    def take(self) -> EndOrder | None:
        """`read` for who obeys: what was taken before comes no more."""
        order = self.read()
        if order == self._taken:
            return None
        self._taken = order
        return order
