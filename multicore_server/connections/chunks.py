"""Checks the framing of chunks with h11: refuses what RFC 9112 7.1 does not allow, as llhttp does.

h11 accepts every byte but a line feed in a chunk extension, even a lone carriage return. It also accepts lone
line feeds at the end of trailers. Another reader, a proxy for example, may see the end of such a message
elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

from h11 import LocalProtocolError

CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab
LINE_FEED_ALONE = re.compile(rb"(?<!\r)\n")


class StrictChunks:
    """h11's reader of a chunked body, given a buffer whose lines are checked."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __call__(self, buffer: Any) -> Any:
        return self._reader(_CheckedLines(buffer))


class _CheckedLines:
    def __init__(self, buffer: Any) -> None:
        self._buffer = buffer
        self.maybe_extract_at_most = buffer.maybe_extract_at_most

    def maybe_extract_next_line(self) -> Any:
        """The size of a chunk, and its extensions."""
        line = self._buffer.maybe_extract_next_line()
        if line is not None and CONTROL.search(line, 0, len(line) - len(b"\r\n")):
            raise LocalProtocolError("illegal byte in a chunk header")
        return line

    def maybe_extract_lines(self) -> Any:
        """Trailers, and the empty line behind them."""
        before = bytes(self._buffer)
        lines = self._buffer.maybe_extract_lines()
        if lines is not None and LINE_FEED_ALONE.search(before, 0, len(before) - len(self._buffer)):
            raise LocalProtocolError("a line feed alone behind the last chunk")
        return lines


def check_chunks(conn: Any) -> None:
    """Have the body of the request that an h11 connection has just reported checked, if it is in chunks."""
    reader = getattr(conn, "_reader", None)
    if type(reader).__name__ == "ChunkedReader":
        conn._reader = StrictChunks(reader)
