"""Runs a WSGI request without the detour over ASGI: from the parser to the app and back in one call.

If the app runs inline, most requests need no task, no messages and no waiting: the request is complete, and
the app gives its whole response at once. Requests that need more (a body that is still arriving, a stream,
another request that has the app) take the usual path.
"""

from __future__ import annotations

import asyncio
import io
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeAlias

from multicore_server.wsgi.bridge import KnownHead, WSGIBridge, close_hidden, go_on
from multicore_server.wsgi.exchange import Exchange
from multicore_server.wsgi.hidden_loop import HiddenLoop
from multicore_server.wsgi.response import Batch, Response

TURNS = 3  # of the loop, in which descriptors are closed
AT_ONCE = 64 * 1024  # bytes of a body that are handled in this way
WHOLE = 2  # messages: a start, and a body behind it

App: TypeAlias = "Callable[..., Awaitable[None]]"


class Cycle(Protocol):
    """One request and its response: uvicorn's, with what ours adds."""

    scope: Any
    known: KnownHead | None
    body: bytearray
    more_body: bool
    disconnected: bool
    waiting_for_100_continue: bool
    receive: Any
    send: Any

    def answer(self, status: int, headers: Iterable[Any], body: bytes) -> bool:
        """Send a whole response; False, and nothing was done, where it is to be sent in messages."""
        ...

    def begin(self) -> None:
        """The app is about to be called."""
        ...

    def run_asgi(self, app: Any) -> Any: ...


class State(Protocol):
    """What is asked of the server's state."""

    gate: Any  # has the connections that are ``leaving``
    scheduled: int  # requests that are served in this turn of the loop or the next

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Count it among the server's tasks until it ends."""
        ...


class Direct:
    """Calls an app that runs inline. ``detours`` tells which requests are to go the usual way, though they
    need not; it may change the scope, as a middleware would. ``state`` is that of the server."""

    def __init__(self, bridge: WSGIBridge, detours: Callable[[Any], bool], state: State) -> None:
        self._bridge = bridge
        self._detours = detours
        self._state = state
        self.loop = asyncio.get_running_loop()
        self._hidden = HiddenLoop()
        self._queue: deque[tuple[Cycle, App]] = deque()
        self._is_due = False  # `_serve_queued`, in the loop's next turn

    def begin(self, cycle: Cycle, app: App) -> None:
        """Serve a request in the loop's next turn: what has come with it is read by then. ``app`` is the
        bridge with what surrounds it: the usual way."""
        self._state.scheduled += 1
        self._queue.append((cycle, app))
        self._serve_soon()

    def _serve_soon(self, turns: int = TURNS) -> None:
        if not self._is_due:
            self._is_due = True
            self.loop.call_soon(self._serve_queued, turns)

    def _serve_queued(self, turns: int) -> None:
        """The loop is hidden once for all of them: that takes a system call before Python 3.12."""
        self._is_due = False
        self._hidden.hide_loop()
        try:
            for _ in range(len(self._queue)):
                # The client of a connection that a sibling has may wait for its end, which comes when nobody
                # has a descriptor of it: it must not wait for what the app does now.
                if self._state.gate.leaving and turns:
                    self._serve_soon(turns - 1)
                    return
                self._state.scheduled -= 1
                self._serve(*self._queue.popleft())
                turns = TURNS
        finally:
            self._hidden.show_loop()
            if self._queue:  # what has come meanwhile
                self._serve_soon()

    def _serve(self, cycle: Cycle, app: App) -> None:
        turn = self._bridge.turn
        if not turn.take():
            self._in_task(cycle, app)
            return
        request = self._request(cycle)
        if request is None:
            turn.give()
            self._in_task(cycle, app)
            return
        failed: BaseException | None = None
        try:
            ended = request.run()
        except BaseException as exc:  # noqa: BLE001 - as in a task, where uvicorn answers 500 and logs it
            failed, ended = exc, False
        if ended:
            turn.give()
        else:
            self._in_task(cycle, request.rest(failed)).add_done_callback(request.end)

    def _request(self, cycle: Cycle) -> _Request | None:
        """None where it is to go the usual way, or goes wrong: then it does so there too, and is answered."""
        try:
            if self._may_serve(cycle):
                cycle.begin()
                if not self._detours(cycle.scope):
                    return _Request(self._bridge, cycle, self.loop)
        except Exception:  # noqa: BLE001 - as above
            return None
        return None

    def _may_serve(self, cycle: Cycle) -> bool:
        return (
            getattr(cycle, "answers_whole", False)
            and not (cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue)
            and len(cycle.body) <= AT_ONCE
        )

    def _in_task(self, cycle: Cycle, app: Any) -> asyncio.Task[Any]:
        self._hidden.show_loop()  # a task may begin at once
        try:
            task = self.loop.create_task(cycle.run_asgi(app))
            self._state.hold(task)
        finally:
            self._hidden.hide_loop()
        return task


class _Request:
    """Of an app that has the thread, while no loop seems to run."""

    __slots__ = ("_batch", "_body", "_bridge", "_cycle", "_exchange", "_loop", "_response", "_steps")

    def __init__(self, bridge: WSGIBridge, cycle: Cycle, loop: asyncio.AbstractEventLoop) -> None:
        self._bridge = bridge
        self._cycle = cycle
        self._loop = loop
        self._exchange: Exchange | None = None
        self._batch: Batch | None = None
        env = bridge.environ(cycle.scope, cycle.known)
        body = cycle.body
        self._body = env["wsgi.input"] = io.BytesIO(body)
        if body:
            env["CONTENT_LENGTH"] = str(len(body))
        self._response = Response(bridge.app, env, self._push)
        self._steps = self._response.run()

    def run(self) -> bool:
        """Call the app; whether its whole response is sent, and its close() has been called."""
        self._cycle.body = bytearray()
        steps = self._steps
        self._batch = batch = next(steps, None)
        if batch is None or len(batch) != WHOLE or not self._response.complete:
            return False
        start, body = batch
        if not self._cycle.answer(start["status"], start["headers"], body["body"]):
            return False
        next(steps, None)
        self._forget()
        return True

    def _push(self, batch: Batch) -> None:
        """The app has called write()."""
        self._made_exchange().push_inline(batch)

    def _made_exchange(self) -> Exchange:
        if self._exchange is None:
            self._exchange = Exchange(self._cycle.receive, self._cycle.send, self._loop)
        return self._exchange

    def rest(self, failed: BaseException | None) -> Callable[..., Awaitable[None]]:
        """The rest of it, as an ASGI app."""

        async def app(*_: object) -> None:
            if failed is not None:
                raise failed
            await go_on(self._steps, self._batch, self._made_exchange())

        return app

    def end(self, _: object) -> None:
        """It is over, well or not: the app has called close(), and the next request can have it."""
        exchange = self._made_exchange()
        try:
            close_hidden(self._steps, exchange)
        finally:
            exchange.end()
            self._body.close()
            self._forget()
            self._bridge.turn.give()

    def _forget(self) -> None:
        """The response, which has a method of this request: otherwise the garbage collector had to."""
        del self._response, self._steps
