"""``--daemon``: the command that starts the server waits until it serves, or prints why it does not."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any, NoReturn

READY, ENDED = b"\0ready\n", b"\0ended "  # no line of a log begins so
LOST = b"the server exited while it started; see its error log\n"


class Launch(logging.Handler):
    """In the process that becomes the server: what it says until it is ready goes to who has started it."""

    def __init__(self, writer: int) -> None:
        super().__init__(logging.ERROR)
        self._writer: int | None = writer
        self._arbiter = 0  # its pid, once it is known
        logging.getLogger("gunicorn.error").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record).encode(errors="replace") + b"\n")

    def begin(self) -> None:
        """This process is the arbiter; the frames above it are those of every worker, too."""
        self._arbiter = os.getpid()

    def ready(self) -> None:
        """The server serves; what follows is not its start."""
        self._write(READY)
        logging.getLogger("gunicorn.error").removeHandler(self)
        if self._writer is not None:
            os.close(self._writer)
        self._writer = None

    def ended(self, status: object) -> None:
        """It does not: ``status`` as `sys.exit` takes it."""
        if self._arbiter not in (0, os.getpid()):
            return
        if isinstance(status, str):
            self._write(status.encode(errors="replace") + b"\n")
        self._write(ENDED + b"%d\n" % (status if isinstance(status, int) else bool(status)))

    def _write(self, data: bytes) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):  # nobody waits any more
                os.write(self._writer, data)


def launch_of(arbiter: Any) -> Launch | None:
    """That of the application, where somebody waits for it."""
    found: Launch | None = getattr(getattr(arbiter, "app", None), "launch", None)
    return found


def launch() -> Launch:
    """Fork. The child goes on, and becomes the server; this process waits for it, and ends."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        _wait(reader)
    os.close(reader)
    return Launch(writer)


def _wait(reader: int) -> NoReturn:
    status = 1
    with os.fdopen(reader, "rb") as said:
        for line in said:
            if line == READY:
                os._exit(0)
            if line.startswith(ENDED):
                status = int(line.removeprefix(ENDED))
                break
            _show(line)
        else:
            _show(LOST)
    os._exit(status)  # nothing of the child's is this process's to end


def _show(line: bytes) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
