"""Events that cost little if nobody waits for them: most requests never wait."""

from __future__ import annotations

import asyncio


class MessageEvent:
    """What uvicorn uses of `asyncio.Event`, for one event loop. That one has a queue from the start, which
    takes 800 bytes for each request, and for each connection that rests."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self, *, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiting: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all who wait."""
        self._is_set = True
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:
        if self._is_set:
            return True
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._waiting is None:
            self._waiting = []
        self._waiting.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if self._waiting is not None:
                self._waiting = [each for each in self._waiting if each is not waiting]
            raise
        return True


class Unawaited:
    """In place of an event for which nobody has waited yet: there is nobody to wake."""

    __slots__ = ()

    def set(self) -> None:
        """Do nothing. Whoever waits first makes an event, and finds out whether it is set."""


UNAWAITED = Unawaited()
