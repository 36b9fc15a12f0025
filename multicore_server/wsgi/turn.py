"""Decides which request has the app, if the app takes one request at a time."""

from __future__ import annotations

import asyncio
from collections import deque


class Turn:
    """A lock for the code of one event loop, which goes to those who wait in their order. Unlike asyncio's,
    it can be taken without waiting, and it is handed from one to the next: nobody comes in between."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Whether it was free, and is taken now."""
        if self._taken:
            return False
        self._taken = True
        return True

    def give(self) -> None:
        """To the next one, if there is any."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._taken = False

    async def __aenter__(self) -> None:
        if self.take():
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():  # it was ours already
                self.give()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.give()
