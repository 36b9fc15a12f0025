"""``wsgi.errors``: sends what WSGI apps write to the error log."""

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import TextIO

from multicore_server.logs.json_lines import JsonFormatter


class WsgiErrors(io.TextIOBase):
    """A stream that writes to the error log, also after it was reopened. Where that is JSON, each line
    becomes a record."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()  # the app may have threads
        self._begun = ""  # a line whose end has not come

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        handlers = [it for it in self._logger.handlers if isinstance(it, logging.StreamHandler)]
        json = [it for it in handlers if isinstance(it.formatter, JsonFormatter)]
        streams = [it.stream for it in handlers if it not in json]
        for stream in streams if handlers else [sys.stderr]:
            stream.write(text)
            stream.flush()
        if json:
            self._log(text, json)
        return len(text)

    def _log(self, text: str, handlers: list[logging.StreamHandler[TextIO]]) -> None:
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(None, lines):
            record = self._logger.makeRecord("wsgi.errors", logging.ERROR, "", 0, line, (), None)
            for handler in handlers:
                handler.handle(record)
