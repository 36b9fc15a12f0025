"""A WSGI response: PEP 3333's rules as a plain generator of ASGI messages.

This module does not wait and does not use an event loop. `bridge.py` runs the generator, inline or in a
thread, and sends the messages. All of the app's code runs inside the generator's ``next()`` and ``close()``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias
from wsgiref.util import is_hop_by_hop

from starlette.types import Message

from multicore_server.wsgi.body import BodyLost

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication

Batch: TypeAlias = list[Message]
Headers: TypeAlias = list[tuple[bytes, bytes]]

logger = logging.getLogger("gunicorn.error")

# RFC 9112 4: three digits and a phrase. RFC 9110 5.5: visible characters, obs-text, space and tab. PEP 3333
# forbids control characters and so the tab, but real apps fold lines with it and gunicorn accepts it.
_STATUS = re.compile(r"([1-5][0-9]{2})(?: [ \t\x21-\x7e\x80-\xff]*)?")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[ \t\x21-\x7e\x80-\xff]*")
_KNOWN = 512  # at most so many names, headers and statuses are remembered: apps can invent new ones
_SHORT = 96  # characters of a value that is worth remembering


class _Fields(dict[tuple[str, str], tuple[bytes, bytes]]):
    """Maps a response header to the bytes that are sent; the name is empty for a hop-by-hop header.

    A header is checked once, because an app sends the same ones every time.
    """

    def __missing__(self, header: tuple[str, str]) -> tuple[bytes, bytes]:
        name, value = header
        key = _NAMES[name]
        if not isinstance(value, str):
            raise TypeError(f"the value of header {name!r} is not a string")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"control or wide characters in the value of header {name!r}")
        # RFC 9110 5.5: white space around it is not part of the value.
        field = key, value.strip(" \t").encode("latin-1")
        if len(value) <= _SHORT:
            if len(self) >= _KNOWN:
                self.clear()
            self[header] = field
        return field


class _HeaderNames(dict[str, bytes]):
    """Maps a response header name to the bytes that are sent (empty for a hop-by-hop header).

    A name is checked once, because an app uses the same few names every time.
    """

    def __missing__(self, name: str) -> bytes:
        if not isinstance(name, str):
            raise TypeError(f"header name {name!r} is not a string")
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"invalid header name {name!r}")
        # PEP 3333, "Other HTTP Features": a server SHOULD refuse hop-by-hop headers. gunicorn drops them.
        # Many apps send "Connection: keep-alive" with an event stream, and they must work here.
        encoded = b"" if is_hop_by_hop(name) else name.lower().encode("ascii")
        if len(self) < _KNOWN:
            self[name] = encoded
        return encoded


class _Statuses(dict[str, int]):
    """Maps a status line to its code. A status line is checked once."""

    def __missing__(self, status: str) -> int:
        if not isinstance(status, str):
            raise TypeError(f"status {status!r} is not a string")
        match = _STATUS.fullmatch(status)
        if match is None:
            raise ValueError(f"invalid status {status!r}: '200 OK' is the form, from 100 to 599")
        code = int(match[1])
        if len(self) < _KNOWN:
            self[status] = code
        return code


_NAMES = _HeaderNames()
_FIELDS = _Fields()
_STATUSES = _Statuses()


def _check_headers(headers: Iterable[tuple[str, str]]) -> tuple[Headers, int | None]:
    """Return the headers as they are sent, and the value of Content-Length."""
    checked: Headers = []
    length: int | None = None
    for name, value in headers:
        field = _FIELDS[name, value]
        if field[0] == b"content-length":
            if length is not None or not field[1].isdigit():
                raise ValueError(f"repeated or invalid Content-Length {value!r}")
            length = int(field[1])
        if field[0]:
            checked.append(field)
    return checked, length


class ClientLeft(BrokenPipeError):  # noqa: N818 - a disconnect is rarely an error
    """The client disconnected. In a thread, write() raises it, as a socket would."""


class Response:
    """The response of one request, made by `start_response`, `write` and the app's iterable.

    write() sends through `push`, so `push` is called while the app's code runs. An app that `may_pass` may
    return None and leave the request to another one.
    """

    __slots__ = (
        "_app",
        "_bodiless",
        "_environ",
        "_headers",
        "_is_head",
        "_may_pass",
        "_push",
        "_remaining",
        "_status",
        "complete",
        "headers_sent",
        "passed",
    )

    def __init__(
        self,
        app: WSGIApplication,
        environ: dict[str, Any],
        push: Callable[[Batch], None],
        *,
        may_pass: bool = False,
    ) -> None:
        self._may_pass = may_pass
        self.passed = False
        self._app = app
        self._environ = environ
        self._push = push
        self._is_head = environ["REQUEST_METHOD"] == "HEAD"
        self._status = 0  # 0: start_response() has not been called
        self._headers: Headers = []
        self._bodiless = False
        self._remaining: int | None = None  # of Content-Length
        self.headers_sent = False
        self.complete = False

    def run(self) -> Generator[Batch, None, None]:
        """Call the app and yield the messages to send. An empty batch asks for a turn of the loop.

        If `complete` is false at the end, the app failed after the headers were sent. Then the connection
        must be closed. Raises ClientLeft or BodyLost where the app does not catch them.
        """
        try:
            result = self._app(self._environ, self.start_response)
            if result is None and self._may_pass and not self._status:
                self.passed = True
                return
            try:
                alone = _is_one_block(result)
                for block in result:
                    # Content-Length is reached: "should stop iterating". One more next() lets a generator run
                    # the code after its last yield, as under other servers.
                    if self.complete:
                        break
                    yield self._emit(block, alone)
                if not self.complete:
                    yield self._end()
            finally:
                self._close(result)
        except (ClientLeft, BodyLost):
            raise
        except Exception:
            path = self._environ["RAW_URI"].partition("?")[0]
            logger.exception("Error handling request %s %s", self._environ["REQUEST_METHOD"], path)
            if not self.headers_sent:
                self.headers_sent = self.complete = True
                yield _server_error()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """PEP 3333, "The start_response() Callable"."""
        if exc_info:
            try:
                if self.headers_sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # avoids a reference cycle through the traceback
        elif self._status:
            raise AssertionError("start_response() was called a second time without exc_info")
        code = _STATUSES[status]
        checked, length = _check_headers(headers)
        self._bodiless = code < 200 or code in (204, 304)
        if self._bodiless and length is not None:
            # RFC 9110 8.6 forbids Content-Length for 1xx and 204. For 304 uvicorn would wait for so many
            # bytes.
            checked = [header for header in checked if header[0] != b"content-length"]
            length = None
        self._headers, self._remaining, self._status = checked, length, code
        return self.write

    def write(self, data: bytes) -> None:
        """PEP 3333, "The write()

        Callable": send `data` before returning, or make sure that it will be sent.
        """
        if self._remaining is not None and len(data) > self._remaining:
            raise ValueError("write() past the response's Content-Length")
        if batch := self._emit(data):
            self._push(batch)

    def _emit(self, data: bytes, alone: bool = False) -> Batch:
        """Return the messages for one block. An empty block has no messages and does not send the headers."""
        if not isinstance(data, bytes):
            raise TypeError(f"the app gave {type(data).__name__} where bytes were expected")
        if not data or self.complete:
            return []
        if not self._status:
            raise AssertionError("the app gave a block before it called start_response()")
        if alone and self._remaining is None and not self.headers_sent and not self._bodiless:
            self._set_length(len(data))
        if self._remaining is not None:
            data = data[: self._remaining]  # PEP 3333: no more bytes than the header allows
            self._remaining -= len(data)
        # uvicorn accepts no body with 204 and 304. For these and for HEAD, nothing follows the headers.
        ended = self._bodiless or self._is_head
        self.complete = ended or self._remaining == 0
        body = b"" if ended else data
        return self._with_head({"type": "http.response.body", "body": body, "more_body": not self.complete})

    def _end(self) -> Batch:
        if not self._status:
            raise AssertionError("the app returned without calling start_response()")
        if self._remaining and not self._is_head:
            raise ValueError(f"the response is {self._remaining} bytes shorter than its Content-Length")
        if self._remaining is None and not (self.headers_sent or self._is_head or self._bodiless):
            self._set_length(0)
        self.complete = True
        return self._with_head({"type": "http.response.body", "body": b"", "more_body": False})

    def _set_length(self, length: int) -> None:
        """PEP 3333, "Handling the Content-Length Header": with a single block, the length is known."""
        self._headers.append((b"content-length", b"%d" % length))
        self._remaining = length

    def _with_head(self, body: Message) -> Batch:
        if self.headers_sent:
            return [body]
        self.headers_sent = True
        return [{"type": "http.response.start", "status": self._status, "headers": self._headers}, body]

    def _close(self, result: Iterable[bytes]) -> None:
        close = getattr(result, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception:
            path = self._environ["RAW_URI"].partition("?")[0]
            logger.exception("Error in close() of request %s %s", self._environ["REQUEST_METHOD"], path)


def _is_one_block(result: Any) -> bool:
    if type(result) is list or type(result) is tuple:
        return len(result) == 1
    try:
        return hasattr(type(result), "__len__") and len(result) == 1
    except TypeError:  # a proxy's __len__ around a generator
        return False


def _server_error() -> Batch:
    body = b"Internal Server Error"
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return [
        {"type": "http.response.start", "status": 500, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]
