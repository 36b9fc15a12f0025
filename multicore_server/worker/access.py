"""Writes gunicorn's access log for what uvicorn serves: its format, its atoms, its logger class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from time import perf_counter
from typing import Any

from gunicorn.glogging import Logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multicore_server.logs.requests import RequestFields, of_atoms
from multicore_server.worker.loggers import access_line
from multicore_server.worker.request_hooks import RequestHooks
from multicore_server.worker.unlogged import NOTHING, Unlogged
from multicore_server.wsgi.bridge import ENVIRON_WANTED, environ

# What uvicorn answers, after this log line is written, where an app raised before its headers.
_UVICORN_500 = b"Internal Server Error"
# The key of a scope where whoever answers in the app's place finds what to tell the messages that it sends.
NOTED = "multicore_server.noted"
# The text of a line whose fields are the arguments, see RequestFields.
_AS_FIELDS = "%(method)s %(path)s %(status)s"
_WHERE_GIVEN = {"query": "QUERY_STRING", "referer": "HTTP_REFERER", "user_agent": "HTTP_USER_AGENT"}
_CLIENT_CLOSED = 499  # nginx's number for a client that left unanswered
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
_STATUS_LINES[_CLIENT_CLOSED] = f"{_CLIENT_CLOSED} Client Closed Request"


class AccessLog:
    """Write one line to `log` (a gunicorn ``glogging.Logger``) for every HTTP request to `app` that is not
    one of ``unlogged``, and call gunicorn's hooks around it. ``as_fields``: the line is made of a request's
    fields, not of gunicorn's format.

    Outside of uvicorn's ProxyHeadersMiddleware, ``%(h)s`` is the peer, as in gunicorn. Inside of it, it is
    the client that a trusted proxy names.
    """

    def __init__(
        self, app: ASGIApp, log: Any, hooks: RequestHooks | None = None, unlogged: Unlogged = NOTHING, *,
        as_fields: bool = False,
    ) -> None:  # fmt: skip
        self._app = app
        self._log = log
        self._hooks = hooks
        self._unlogged = unlogged
        # A logger class of its own (statsd, a user's) does more in access() than write the line.
        self._always = type(log).access is not Logger.access
        self._access = self._access_fields if as_fields and not self._always else log.access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        logged = scope not in self._unlogged
        if not (self._hooks or self._always or (logged and self._is_on())):
            await self._app(scope, receive, send)
            return
        entry = _Entry(self._ended if logged else self._ended_unlogged, scope, receive, send)
        if self._hooks:
            self._hooks.before(entry.request)
        try:
            await self._app(scope, entry.receive, entry.send)
        finally:
            entry.finish()

    def _ended(
        self, scope: Scope, request: _Request, response: _Response, seen: dict[str, Any], elapsed: timedelta
    ) -> None:
        if self._always or self._is_on():
            self._write(scope, request, response, seen, elapsed)
        if self._hooks:
            self._hooks.after(request, seen, response)

    def _ended_unlogged(
        self, _: Scope, request: _Request, response: _Response, seen: dict[str, Any], elapsed: timedelta
    ) -> None:
        if self._always:
            self._access_silently(response, request, seen, elapsed)
        if self._hooks:
            self._hooks.after(request, seen, response)

    def _write(
        self, scope: Scope, request: _Request, response: _Response, seen: dict[str, Any], elapsed: timedelta
    ) -> None:
        """As the app wants it that has set up uvicorn's access logger."""
        admitted, line = access_line.judge(scope, response.status_code)
        if line is not None and not self._always:
            self._log.access_log.info("%s", line)
        elif admitted:
            self._access(response, request, seen, elapsed)
        elif self._always:
            self._access_silently(response, request, seen, elapsed)

    def _access_silently(self, *about: Any) -> None:
        with _silenced(self._log):
            self._log.access(*about)

    def _access_fields(
        self, response: _Response, request: _Request, seen: dict[str, Any], elapsed: timedelta
    ) -> None:
        """In place of gunicorn's ``access()``, where all handlers write JSON: its atoms cost twice as much as
        all else of a line."""
        if seen.get("HTTP_AUTHORIZATION", "")[:5].lower() == "basic":  # who the user is, gunicorn finds out
            fields = of_atoms(self._log.atoms(response, request, seen, elapsed))
        else:
            fields = _fields(response, request, seen, elapsed)
        self._log.access_log.info(_AS_FIELDS, fields)

    def _is_on(self) -> bool:
        # gunicorn 25 has no such property: there access() itself looks at the settings.
        return getattr(self._log, "access_log_enabled", True)


def _fields(
    response: _Response, request: _Request, seen: dict[str, Any], elapsed: timedelta
) -> RequestFields:
    fields = RequestFields(
        client=seen["REMOTE_ADDR"],
        method=request.method,
        path=request.path,
        protocol=seen["SERVER_PROTOCOL"],
        status=response.status_code,
        bytes=response.sent,
        duration=elapsed.total_seconds(),
    )
    for name, key in _WHERE_GIVEN.items():
        if value := seen.get(key):
            fields[name] = value
    return fields


class _Request:
    """What `Logger.atoms`, loggers derived from it, and hooks read of gunicorn's request."""

    __slots__ = ("headers", "method", "path", "peer_addr", "query", "remote_addr", "scheme", "uri", "version")

    def __init__(self, scope: Scope, env: dict[str, Any]) -> None:
        self.method = env["REQUEST_METHOD"]
        self.uri = env["RAW_URI"]
        self.path = self.uri.partition("?")[0]
        self.query = env["QUERY_STRING"]
        self.version = _version(scope["http_version"])
        self.peer_addr = self.remote_addr = scope["client"]
        self.scheme = scope["scheme"]
        self.headers = [(name.upper(), value) for name, value in _text(scope["headers"])]


class _Response:
    """What `Logger.atoms`, and loggers derived from it, read of gunicorn's response."""

    __slots__ = ("headers", "sent", "status", "status_code")

    def __init__(self, code: int, headers: list[tuple[str, str]], sent: int) -> None:
        self.status = _STATUS_LINES.get(code, str(code))
        self.status_code = code
        self.headers = headers
        self.sent = sent


class _Entry:
    """Collects what is told of a request at its end, while the messages between server and app pass."""

    def __init__(self, ended: Callable[..., None], scope: Scope, receive: Receive, send: Send) -> None:
        self._ended = ended
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = perf_counter()
        self._environ = environ(scope)  # now: middleware further in changes the scope
        scope[ENVIRON_WANTED] = None
        scope[NOTED] = self.note
        self.request = _Request(scope, self._environ)
        self._status: int | None = None
        self._headers: list[tuple[str, str]] = []
        self._sent = 0
        self._left = False
        self._finished = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._finished:
            self._left = True
        return message

    async def send(self, message: Message) -> None:
        lost = self._lost()
        await self._send(message)
        self._note(message, lost)

    def note(self, message: Message) -> None:
        """A message was sent in the app's place."""
        self._note(message, self._lost())

    def _note(self, message: Message, lost: bool) -> None:
        if self._finished:
            return
        if message["type"] == "http.response.start" and not lost:
            self._status = message["status"]
            self._headers = _text(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            if not lost and self.request.method != "HEAD":
                self._sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.finish()

    def finish(self) -> None:
        """Write the line: at the response's end, not when the app's background work is done too."""
        if self._finished:
            return
        self._finished = True
        self._scope.pop(NOTED, None)
        if self._status is None:
            lost = self._lost()
            self._status = _CLIENT_CLOSED if lost else HTTPStatus.INTERNAL_SERVER_ERROR.value
            self._sent = 0 if lost or self.request.method == "HEAD" else len(_UVICORN_500)
        # As in gunicorn, the environ is the one that the app saw and wrote to (REMOTE_USER, say), but for
        # the peer, which is "not overridden by proxy headers".
        seen = {**self._environ, **(self._scope.pop(ENVIRON_WANTED, None) or {})}
        seen["REMOTE_ADDR"] = self._environ["REMOTE_ADDR"]
        elapsed = timedelta(seconds=perf_counter() - self._started)
        response = _Response(self._status, self._headers, self._sent)
        self._ended(self._scope, self.request, response, seen, elapsed)

    def _lost(self) -> bool:
        # uvicorn silently drops what is sent to a client that left. Its cycle, to which its send() is bound,
        # knows that; with any other server, only receive() tells.
        cycle = getattr(self._send, "__self__", None)
        return self._left or bool(getattr(cycle, "disconnected", False))


@contextmanager
def _silenced(log: Any) -> Iterator[None]:
    """No line is written meanwhile."""
    logger, before = log.access_log, log.access_log.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _text(headers: Any) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in headers]


def _version(http_version: str) -> tuple[int, int]:
    major, _, minor = http_version.partition(".")
    return int(major), int(minor or 0)
