"""uvicorn's and gunicorn's loggers in a worker, as apps expect them.

Under uvicorn, its loggers are set up before the app is imported. So the app's records on them are shown, and
the app's changes to them (a filter for health checks, a handler of its own) work. The same is true here, with
gunicorn's logs behind them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from multicore_server import hosts
from multicore_server.logs.json_lines import JsonFormatter
from multicore_server.logs.origin import origin
from multicore_server.settings.gunicorn import log_configuration
from multicore_server.worker.unlogged import NOTHING, Unlogged

ERROR, ACCESS = "gunicorn.error", "gunicorn.access"
UVICORN, UVICORN_ACCESS = "uvicorn", "uvicorn.access"
ACCESS_FORMAT = '%s - "%s %s HTTP/%s" %d'  # uvicorn's
# Where uvicorn says that it starts and stops.
CHATTER = tuple(str(Path(uvicorn.__file__).parent / name) for name in ("server.py", "lifespan"))


def set_up(log: Any, cfg: Any, *, access: bool, form: str = "text", unlogged: Unlogged = NOTHING) -> None:
    """In a worker, before the app is loaded. ``log`` is gunicorn's; ``access``: it may have an access log,
    without the requests that are ``unlogged``; ``form``: `log_format`."""
    if any(isinstance(handler, QueueHandler) for handler in _handlers()):
        log.setup(cfg)  # the thread that empties the queue is in the process that has read the configuration
        use_format(log, cfg, form)
    written = access and logging.getLogger(ACCESS).hasHandlers()
    lend(log.error_log, access=written)
    if unlogged and not written:
        logging.getLogger(UVICORN_ACCESS).addFilter(unlogged.admits)
    _label_atoms(log)


def use_format(log: Any, cfg: Any, form: str) -> None:
    """Let the handlers that gunicorn has just made write in the form of `log_format`.

    Those of a log configuration have formatters of their own, and syslog has its own form of a line.
    """
    if form != "json" or log_configuration(cfg):
        return
    for handler in handlers_of(log):
        if isinstance(handler, logging.StreamHandler):
            handler.setFormatter(JsonFormatter())


def handlers_of(log: Any) -> list[logging.Handler]:
    """Return the handlers of gunicorn's error log and of its access log."""
    loggers = (log.error_log, getattr(log, "access_log", None))  # a user's own logger may have none
    return [handler for logger in loggers if logger is not None for handler in logger.handlers]


def _label_atoms(log: Any) -> None:
    """Let ``%(instance)s`` and ``%(generation)s`` be atoms of gunicorn's access_log_format."""
    make: Any = getattr(log, "atoms", None)  # a user's own logger may have none

    def atoms(*args: Any, **kwargs: Any) -> Any:
        found = make(*args, **kwargs)
        found["instance"], found["generation"] = origin()
        return found

    if make is not None:
        log.atoms = atoms


def writes_json(log: Any) -> bool:
    """Whether the access log is JSON, wherever it goes."""
    handlers = getattr(getattr(log, "access_log", None), "handlers", ())
    return bool(handlers) and all(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def lend(error_log: logging.Logger, *, access: bool) -> None:
    """Let uvicorn's loggers write to gunicorn's error log, and to its access log where there is one.

    What a log configuration has set up stays as it is.
    """
    names = hosts.uvicorn_loggers()
    uvicorns = logging.getLogger(UVICORN)
    if not any(logging.getLogger(name).handlers for name in (UVICORN, *names)):
        uvicorns.handlers = list(error_log.handlers)  # a copy: apps clear it
        uvicorns.propagate = error_log.propagate
    for name in (UVICORN, *names):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(error_log.level)
        if name != UVICORN and error_log.level > logging.DEBUG:
            logger.addFilter(_is_news)
    _lend_access(access)
    keep_enabled(UVICORN, UVICORN_ACCESS, *names)


def _lend_access(wanted: bool) -> None:
    logger = logging.getLogger(UVICORN_ACCESS)
    access_line.lent = wanted
    if wanted:
        logger.handlers = [access_line]
        _become(logger, _GivenByUs)
    if wanted or not logger.handlers:
        logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not one of uvicorn's lines about its start and stop, which would repeat ours."""
    return record.levelno > logging.INFO or not record.pathname.startswith(CHATTER)


class _Upgrades:
    """Says once, and in one line, what uvicorn says wrongly at each WebSocket request to a WSGI app."""

    FIRST, SECOND = "Unsupported upgrade request.", "No supported WebSocket library detected."
    TEXT = (
        "a WSGI app got a WebSocket request, but no socket for it (gunicorn.socket, which Flask-Sock needs): "
        "serve WebSockets from an ASGI app (Quart, Starlette), or run this app with gunicorn -k gthread"
    )

    def __init__(self) -> None:
        self._said = False

    def __call__(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text.startswith(self.FIRST) and not self._said:
            self._said = True
            record.msg = self.TEXT
            return True
        return not text.startswith((self.FIRST, self.SECOND))


def explain_upgrades() -> None:
    """For a worker with a WSGI app."""
    explain = _Upgrades()
    for name in hosts.uvicorn_loggers():
        logging.getLogger(name).addFilter(explain)


# --- the access log


class AccessLine(logging.Handler):
    """Stands in uvicorn's access logger for the line of gunicorn's."""

    def __init__(self) -> None:
        super().__init__()
        self.lent = False  # in this process
        self._formatted: str | None = None
        self._reached = False

    def emit(self, record: logging.LogRecord) -> None:
        self._reached = True
        self._formatted = self.format(record) if self.formatter is not None else None

    def judge(self, scope: Any, status: int) -> tuple[bool, str | None]:
        """Whether a request is logged, and the line where the app has its own form of it.

        An app's handlers are given uvicorn's record.
        """
        logger = logging.getLogger(UVICORN_ACCESS)
        if not self.lent:
            return True, None
        if not logger.isEnabledFor(logging.INFO):
            return False, None
        if logger.handlers == [self] and not (logger.filters or self.filters or self.formatter):
            return True, None
        self._reached, self._formatted = False, None
        logger.handle(_record(scope, status))
        return self._reached, self._formatted


access_line = AccessLine()


def _record(scope: Any, status: int) -> logging.LogRecord:
    """What uvicorn logs of a request: filters look at its five arguments."""
    path = get_path_with_query_string(scope)
    args = (get_client_addr(scope), scope["method"], path, scope["http_version"], status)
    return logging.LogRecord(UVICORN_ACCESS, logging.INFO, __file__, 0, ACCESS_FORMAT, args, None, "send")


# --- what apps do to all loggers


class _Kept:
    """A logger that no log configuration silences by not naming it (``disable_existing_loggers``, which is
    logging's default and Django's); an app may still say so of this one."""

    __dict__: dict[str, Any]

    @property
    def disabled(self) -> bool:
        return bool(self.__dict__.get("disabled", False))

    @disabled.setter
    def disabled(self, value: bool) -> None:
        if not (value and sys._getframe(1).f_globals.get("__name__") == "logging.config"):
            self.__dict__["disabled"] = value


class _GivenByUs:
    """uvicorn's access logger, where the records are ours: uvicorn is not to write them as well."""

    def hasHandlers(self) -> bool:  # noqa: N802 - logging's
        return False


def keep_enabled(*names: str) -> None:
    """Let these loggers speak, whatever log configuration the app brings. Idempotent."""
    for name in names:
        _become(logging.getLogger(name), _Kept)


def _become(logger: logging.Logger, kind: type[Any]) -> None:
    theirs = type(logger)
    if not issubclass(theirs, kind):
        logger.__class__ = type(theirs.__name__, (kind, theirs), {})


def is_moved(log: Any) -> bool:
    """Whether a file of gunicorn's logs is no longer at its path: it was rotated, and is to be reopened."""
    files = [it for it in handlers_of(log) if isinstance(it, logging.FileHandler)]
    return any(it.stream is not None and _is_moved(it.stream.fileno, it.baseFilename) for it in files)


def _is_moved(fileno: Callable[[], int], path: str) -> bool:
    try:
        return not os.path.samestat(os.fstat(fileno()), os.stat(path))  # noqa: PTH116 - as text
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # no right to look at it; the stream is closed
        return False


def _handlers() -> Iterator[logging.Handler]:
    for logger in [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]:
        yield from getattr(logger, "handlers", ())  # a placeholder has none
