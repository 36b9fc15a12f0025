"""Makes the heads of responses: converts an app's headers to bytes, and checks each header only once.

Many responses of an app have the same head for the second in which its date holds. Such a head is made once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http import httptools_impl

LENGTH = b"content-length"
SPECIAL = frozenset({LENGTH, b"transfer-encoding", b"connection"})  # they mean something here
KNOWN = 512  # header lines that are remembered
WHOLE = 128  # whole heads that are remembered
LONGEST_WHOLE = 1024  # bytes of a head that is worth remembering
LONGEST = 96  # bytes of a value that is worth remembering
BODILESS = (204, 304)  # statuses
LISTS = frozenset({list, tuple})  # what can be read again, where uvicorn is to make the head after all


def is_bodiless(method: str, status: Any) -> bool:
    """Whether nothing follows the head of a response, whatever it says of a length (RFC 9112 6.3)."""
    return method == "HEAD" or status in BODILESS


class Lines(dict[Any, bytes]):
    """Header lines by name and value, once they were found to be valid; the special ones are empty here."""

    def __init__(self) -> None:
        super().__init__()
        self._bad_name: Any = httptools_impl.HEADER_RE.search
        self._bad_value: Any = httptools_impl.HEADER_VALUE_RE.search

    def __missing__(self, header: Any) -> bytes:
        name, value = header
        lower = name.lower()
        if self._bad_name(name) or self._bad_value(value):
            return b""
        line = b"" if lower in SPECIAL else b"%b: %b\r\n" % (lower, value)
        if len(value) <= LONGEST:
            if len(self) >= KNOWN:
                self.clear()
            self[header] = line
        return line


class Heads:
    """Makes the heads of responses."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._status_lines: Any = httptools_impl.STATUS_LINE
        self._whole: dict[Any, tuple[bytes, int]] = {}  # heads with their Content-Length
        self._defaults: Any = None  # the default headers as last seen: uvicorn makes new ones each second
        self._default_lines: bytes | None = None

    def make(self, cycle: Any, status: int, headers: Iterable[Any]) -> bytes | None:
        """The head, with what follows from it set on the cycle; None, and nothing set, where uvicorn is to
        make it, or to say what is wrong with it."""
        if cycle.default_headers is not self._defaults:
            self._learn(cycle.default_headers)
        if self._default_lines is None or cycle.access_log or type(headers) not in LISTS:
            return None
        key = (status, cycle.keep_alive, cycle.chunked_encoding, *headers)
        try:
            head, cycle.expected_content_length = self._whole[key]
        except KeyError:
            return self._make(cycle, status, headers, key)
        except TypeError:  # a header that cannot be a key
            return None
        cycle.chunked_encoding = False
        return head

    def _make(self, cycle: Any, status: int, headers: Iterable[Any], key: Any) -> bytes | None:
        length, chunked, lines = 0, cycle.chunked_encoding, self._lines
        try:
            parts = [self._status_lines[status], self._default_lines]
            for header in headers:
                line = lines[header]
                if not line:
                    name, value = header
                    known = name == LENGTH or name.lower() == LENGTH
                    if not known or chunked is not None or not value.isdigit():
                        return None
                    length, chunked = int(value), False
                    line = b"content-length: %b\r\n" % value
                parts.append(line)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        if chunked is None and not is_bodiless(cycle.scope["method"], status):
            chunked = True
            parts.append(b"transfer-encoding: chunked\r\n")
        if chunked is not cycle.chunked_encoding:
            cycle.chunked_encoding, cycle.expected_content_length = chunked, length
        parts.append(b"\r\n")
        head = b"".join(parts)
        if chunked is False:
            self._remember(key, head, length)
        return head

    def _remember(self, key: Any, head: bytes, length: int) -> None:
        if len(head) <= LONGEST_WHOLE:
            if len(self._whole) >= WHOLE:
                self._whole.clear()
            self._whole[key] = head, length

    def _learn(self, defaults: Any) -> None:
        self._whole.clear()
        lines = [self._lines[header] for header in defaults]
        self._defaults, self._default_lines = defaults, b"".join(lines) if all(lines) else None
