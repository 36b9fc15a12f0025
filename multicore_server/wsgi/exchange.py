"""Sends a WSGI app's response through ASGI's send(), and notices when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from types import coroutine
from typing import Any

from starlette.types import Receive, Send

from multicore_server.wsgi.hidden_loop import HiddenLoop
from multicore_server.wsgi.response import Batch, ClientLeft


def _yes() -> bool:
    return True


class Exchange(HiddenLoop):
    """ASGI's receive and send of one request, for an app that runs inline or in a thread."""

    __slots__ = (
        "_backlog",
        "_in_flight",
        "_receive",
        "_send",
        "_watcher",
        "body_is_complete",
        "gone",
        "suspended",
        "thread",
    )

    def __init__(self, receive: Receive, send: Send, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self._in_flight: Future[None] | None = None
        self._backlog: list[Batch] = []
        self.suspended: _Suspended | None = None  # what write() could not finish
        self.body_is_complete: Callable[[], bool] = _yes  # until then, receive() is the app's
        self.gone = False  # the client disconnected, or the server aborts the request
        self.thread: int | None = None  # the app's, if it has one for this request

    async def transmit(self, batch: Batch) -> None:
        """Send a batch. Unless it is the last one, let the loop run once, so that it sees a disconnect."""
        complete = bool(batch) and not batch[-1]["more_body"]
        if complete:
            self._end_watch()  # receive() takes a complete response for a disconnect
        for message in batch:
            await self._send(message)
        if complete:
            return
        if self._watcher is None and self.body_is_complete():
            self._watcher = self._loop.create_task(self._watch())
        await asyncio.sleep(0)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    def _end_watch(self) -> None:
        watcher, self._watcher = self._watcher, None  # it keeps, by the error that ends it, this exchange
        if watcher is not None:
            watcher.cancel()

    def end(self) -> None:
        """Stop watching the client, and close a send that is not finished."""
        self._end_watch()
        if self.suspended is not None:
            self.suspended.close()

    # Inline: the app runs in the loop's thread, inside this request's task.

    def push_inline(self, batch: Batch) -> None:
        """Send from inside write(), which cannot await. `settle` finishes a send that would have to wait."""
        if self.suspended is not None:
            self._backlog.append(batch)
            return
        self.show_loop()
        try:
            self.suspended = _start(self._send_all(batch))
        finally:
            self.hide_loop()

    async def _send_all(self, batch: Batch) -> None:
        for message in batch:
            await self._send(message)

    async def settle(self) -> None:
        """Finish the sends that write() started."""
        if self.suspended is not None:
            await self.suspended.finish()
            self.suspended = None
        for batch in self._backlog:
            await self._send_all(batch)
        self._backlog.clear()

    # Threads: the app waits until its block is sent. This is the back-pressure.

    def push_from_thread(self, batch: Batch) -> None:
        """Call `transmit` from a thread, and wait. Raises ClientLeft after a disconnect or an `abort`."""
        sending = self.transmit(batch)
        try:
            self._in_flight = asyncio.run_coroutine_threadsafe(sending, self._loop)
            # abort() sets `gone` and then reads `_in_flight`. This code sets `_in_flight` and then reads
            # `gone`. So at least one of the two sees the other.
            if self.gone:
                self._in_flight.cancel()
            self._in_flight.result()
        except CancelledError:
            self.gone = True
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            sending.close()
            self.gone = True
        if self.gone:
            raise ClientLeft("the client left")

    def abort(self) -> None:
        """Give the request up: nothing waits for its thread any more."""
        self.gone = True
        if self._in_flight is not None:
            self._in_flight.cancel()


class _Suspended:
    """A coroutine that was run by hand until it had to wait."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, started: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._coroutine = started
        self._waits_for = waits_for

    @coroutine
    def finish(self) -> Generator[Any, Any, None]:
        """Run the coroutine to its end: yield what it waits for to the task, and send the results back."""
        try:
            while True:
                try:
                    answer = yield self._waits_for
                except BaseException as exc:  # noqa: BLE001, PERF203 - passed on; mostly a cancellation
                    self._waits_for = self._coroutine.throw(exc)
                else:
                    self._waits_for = self._coroutine.send(answer)
        except StopIteration:
            pass

    def close(self) -> None:
        self._coroutine.close()


def _start(fresh: Coroutine[Any, Any, None]) -> _Suspended | None:
    try:
        return _Suspended(fresh, fresh.send(None))
    except StopIteration:
        return None
