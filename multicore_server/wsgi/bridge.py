"""Runs a WSGI app on uvicorn (PEP 3333 over ASGI 3).

With one thread, the app runs inline, in the event loop's thread, which is fastest. It then has one request at
a time, from the call into the app to close(). No request starts while a streamed response waits for its
client. With more threads, each request has one of them from the call to close().
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from http import HTTPStatus
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TextIO, TypeAlias

from gunicorn import SERVER_SOFTWARE
from starlette.types import Receive, Scope, Send

from multicore_server.ipc.identity import refused
from multicore_server.wsgi.body import ArrivingBody, BodyLost, FileWrapper, read_body, rewind
from multicore_server.wsgi.environ import (
    ALWAYS,
    FORWARDED,
    Forwarded,
    add_connection,
    add_request,
    add_server,
    environ,
)
from multicore_server.wsgi.exchange import Exchange
from multicore_server.wsgi.hidden_loop import HiddenLoop
from multicore_server.wsgi.response import Batch, ClientLeft, Response
from multicore_server.wsgi.threads import Threads
from multicore_server.wsgi.turn import Turn

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["ENVIRON_WANTED", "IN_THREAD", "WSGIBridge", "environ"]

# The access log puts this key into a scope. The bridge then stores the environ there, with the app's changes.
ENVIRON_WANTED = "multicore_server.environ"
# Who measures puts a callable at this key into a scope. It is given the seconds that a thread was waited for.
IN_THREAD = "multicore_server.in_thread"
KNOWN = 128  # connections whose part of the environ is remembered
AT_ONCE = 64 * 1024  # bytes of a body that are read before the app is called, in threads too
REFUSED_NAME = "a name with a _ (header_map)"
Steps: TypeAlias = Generator[Batch, None, None]
HeaderMap: TypeAlias = Literal["drop", "refuse", "dangerous"]

logger = logging.getLogger("gunicorn.error")


async def refuse(send: Send, status: HTTPStatus) -> None:
    """Answer in place of the app, as the last response of the connection."""
    body = f"{status.phrase}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class KnownHead(Protocol):
    """A head that has come before."""

    headers: list[tuple[bytes, bytes]]
    cgi: dict[str, Any] | None  # the request's part of its environ, once that was made


def say_refused(scope: Scope, status: HTTPStatus, why: str) -> None:
    logger.warning("%s", refused(scope["client"], status, why))


class WSGIBridge:
    """An ASGI 3 app that runs a WSGI app.

    `threads` is the size of the thread pool; 1 means inline. `errors` is ``wsgi.errors``, by default stderr.
    `script_name` is the prefix at which the app is mounted; it is removed from the path if the proxy did not
    remove it. `header_map` is gunicorn's setting for headers with a ``_`` in their name. `spool_dirs` are the
    directories for large request bodies; the first that takes a file is used, None is Python's own choice.

    An app may have an attribute ``before_body``: a callable like the app itself, which is called where a
    request has a body, before that is read. It answers from the head alone, or returns None: then the body
    is read and the app is called. It finds no ``wsgi.input``.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        threads: int = 1,
        errors: TextIO | None = None,
        script_name: str = "",
        header_map: HeaderMap = "drop",
        spool_dirs: Sequence[str | None] = (None,),
    ) -> None:
        self.app = app
        self._before_body: Any = getattr(app, "before_body", None)
        self._script_name = script_name
        self._drop_underscores = header_map != "dangerous"
        self._refuse_underscores = header_map == "refuse"
        self._spool_dirs = spool_dirs
        self.turn = Turn()
        self._known: dict[Any, dict[str, Any]] = {}  # environs that have what is their connection's
        self._threads = Threads(threads) if threads > 1 else None
        self._base: dict[str, Any] = {
            **dict.fromkeys(ALWAYS, ""),  # a dictionary that has its size already is filled faster
            "SERVER_SOFTWARE": SERVER_SOFTWARE,  # gunicorn's, because apps (for example httpbin) check it
            "wsgi.version": (1, 0),
            "wsgi.errors": errors if errors is not None else sys.stderr,
            "wsgi.multithread": threads > 1,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})  # before accept: the client gets a 403
            return
        if scope["type"] != "http":
            raise RuntimeError(f"a WSGI app has no {scope['type']} protocol")
        if self._refuse_underscores and _has_refused_name(scope):
            say_refused(scope, HTTPStatus.BAD_REQUEST, REFUSED_NAME)
            await refuse(send, HTTPStatus.BAD_REQUEST)
            return
        env = self.environ(scope)
        if self._before_body is not None and _has_body(env, scope):
            exchange = Exchange(receive, send)
            exchange.body_is_complete = lambda: False
            response = await self._call(self._before_body, env, exchange, io.BytesIO(), scope, may_pass=True)
            if not response.passed:
                return
        try:
            body = await self._body(env, scope, receive)
        except OSError as exc:
            logger.error("no room for the request body of %s %s: %s", scope["method"], scope["path"], exc)
            await refuse(send, HTTPStatus.INSUFFICIENT_STORAGE)
            return
        if body is None:  # the client disconnected before the request was complete
            return
        if ENVIRON_WANTED in scope:
            scope[ENVIRON_WANTED] = env
        await self._call(self.app, env, Exchange(receive, send), body, scope)

    def environ(self, scope: Scope, known: KnownHead | None = None) -> dict[str, Any]:
        """The environ of a request, but for its body. ``known`` is its head, if that has come before."""
        env = self._of_connection(scope)
        if known is None or FORWARDED in scope or scope["headers"] != known.headers:
            self._add_request(env, scope)
        else:
            if known.cgi is None:
                cgi: dict[str, Any] = {}
                self._add_request(cgi, scope)
                known.cgi = cgi  # whole: to add may fail
            env.update(known.cgi)
        add_server(env)
        return env

    def _add_request(self, env: dict[str, Any], scope: Scope) -> None:
        drop = self._drop_underscores
        add_request(env, scope, script_name=self._script_name, drop_underscores=drop)

    def _of_connection(self, scope: Scope) -> dict[str, Any]:
        client, server = scope.get("client"), scope.get("server")
        if type(client) is not tuple or type(server) is not tuple:  # it may be more than it is equal to
            return self._begun(scope)
        key = client, server, scope.get("scheme"), scope["http_version"]
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            known = self._known[key] = self._begun(scope)
        return known.copy()

    def _begun(self, scope: Scope) -> dict[str, Any]:
        env = self._base.copy()
        add_connection(env, scope)
        return env

    @property
    def is_inline(self) -> bool:
        return self._threads is None

    @property
    def is_direct(self) -> bool:
        """Whether requests can be served without a detour: inline, and nobody looks at them before."""
        return self.is_inline and self._before_body is None and not self._refuse_underscores

    async def between_requests(self, call: Callable[[], None]) -> None:
        """Call a function of the app's where it may run: inline, when no request is in progress; otherwise in
        a thread that is no request's."""
        if self._threads is not None:
            await asyncio.to_thread(call)
            return
        async with self.turn:
            with HiddenLoop().hidden():
                call()

    async def _call(
        self,
        app: WSGIApplication,
        env: dict[str, Any],
        exchange: Exchange,
        body: BinaryIO,
        scope: Scope,
        *,
        may_pass: bool = False,
    ) -> Response:
        if self._threads is None:
            response = Response(app, env, exchange.push_inline, may_pass=may_pass)
            await self._inline(response, exchange, body)
        else:
            response = Response(app, env, exchange.push_from_thread, may_pass=may_pass)
            await self._in_thread(self._threads, response, exchange, body, scope.pop(IN_THREAD, None))
        return response

    async def _body(self, env: dict[str, Any], scope: Scope, receive: Receive) -> BinaryIO | None:
        body: BinaryIO | None
        if not _has_body(env, scope):
            body = io.BytesIO()
        elif self._threads is not None and int(env.get("CONTENT_LENGTH", 0)) > AT_ONCE:
            body = io.BufferedReader(ArrivingBody(receive, asyncio.get_running_loop()), AT_ONCE)
        else:
            body = await read_body(receive, self._spool_dirs)
            if body is None:
                return None
            # RFC 3875 4.1.2: the length without the transfer coding. Without a length, Django reads nothing.
            env["CONTENT_LENGTH"] = str(rewind(body))
        env["wsgi.input"] = body
        return body

    async def _inline(self, response: Response, exchange: Exchange, body: BinaryIO) -> None:
        try:
            async with self.turn:
                steps = response.run()
                await go_on(steps, _step_hidden(steps, exchange), exchange)
        finally:
            exchange.end()
            body.close()

    async def _in_thread(
        self,
        threads: Threads,
        response: Response,
        exchange: Exchange,
        body: BinaryIO,
        has_waited: Callable[[float], None] | None,
    ) -> None:
        arriving = getattr(body, "raw", None)
        if isinstance(arriving, ArrivingBody):
            exchange.body_is_complete = lambda: arriving.complete
        submitted, began = perf_counter(), list[float]()
        try:
            job = threads.submit(copy_context().run, _run_in_thread, response, exchange, body, began)
        except RuntimeError:
            exchange.end()
            body.close()
            raise
        try:
            await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            # A thread cannot be stopped from outside. It sees the abort at its next block, and calls close().
            exchange.abort()
            if isinstance(arriving, ArrivingBody):
                arriving.abort()
            if job.cancel():
                body.close()
            raise
        finally:
            exchange.end()
            if has_waited is not None and began:
                has_waited(began[0] - submitted)


def _has_refused_name(scope: Scope) -> bool:
    forwarded = scope.get(FORWARDED) or Forwarded(frozenset())
    return any(b"_" in name and not forwarded.allows(name) for name, _ in scope["headers"])


def _has_body(env: dict[str, Any], scope: Scope) -> bool:
    """Return whether receive() must be called (RFC 9112 6.3).

    From HTTP/2 on, headers do not announce a body.
    """
    length = env.get("CONTENT_LENGTH")
    if length is not None:
        return bool(length != "0")
    return "HTTP_TRANSFER_ENCODING" in env or scope["http_version"][0] != "1"


async def go_on(steps: Steps, batch: Batch | None, exchange: Exchange) -> None:
    """Send what the app has given, and what it gives from now on; None: it has given all."""
    try:
        while batch is not None:
            if exchange.suspended is not None:
                await exchange.settle()
            await exchange.transmit(batch)
            if exchange.gone:
                break
            batch = _step_hidden(steps, exchange)
        if exchange.suspended is not None:
            await exchange.settle()
    finally:
        if batch is not None:  # the response ended early: close() is still to be called
            close_hidden(steps, exchange)


def _step_hidden(steps: Steps, exchange: Exchange) -> Batch | None:
    """Run the app to its next block, with the running loop hidden.

    Otherwise Django's ORM and asgiref refuse to work.
    """
    exchange.hide_loop()
    try:
        return next(steps, None)
    finally:
        exchange.show_loop()


def close_hidden(steps: Steps, exchange: Exchange) -> None:
    """Let the app call close() and what else is to be done at the end. Idempotent."""
    exchange.hide_loop()
    try:
        steps.close()
    finally:
        exchange.show_loop()


def _run_in_thread(response: Response, exchange: Exchange, body: BinaryIO, began: list[float]) -> None:
    began.append(perf_counter())
    exchange.thread = get_ident()
    steps = response.run()
    try:
        for batch in steps:
            exchange.push_from_thread(batch)
    except (ClientLeft, BodyLost):
        pass
    finally:
        try:
            steps.close()
        finally:
            body.close()
