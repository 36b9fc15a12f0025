"""Puts this package's arbiter in the place of gunicorn's.

gunicorn calls the worker class's ``setup()`` while it constructs its arbiter. It gives the worker class the
arbiter itself only after it has written the pidfile and bound its addresses. This is too late to refuse a bad
setting without a trace, or to report a taken port in one line. So ``Arbiter.start`` is wrapped once. The
wrapper gives our class to an arbiter whose worker class is ours, and leaves all other arbiters alone.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import gunicorn.arbiter
from gunicorn.app.base import BaseApplication

from multicore_server.arbiter import app_metrics, hooks, logs, resolution
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.systemd import service
from multicore_server.ipc.identity import server_name
from multicore_server.logs.origin import label_records
from multicore_server.machine import directories
from multicore_server.worker import failures, loggers
from multicore_server.worker.worker import Worker

_installed = False


def install() -> None:
    """Let arbiters whose worker class is our Worker, or a subclass, become ours. Idempotent."""
    global _installed
    service.take()
    label_records()
    if not _installed:
        _installed = True
        theirs = gunicorn.arbiter.Arbiter
        theirs.start = _taking_over(theirs.start)
        theirs.num_workers = property(theirs._get_num_workers, _wrapping_hooks(theirs._set_num_workers))
        BaseApplication.wsgi = _explaining(BaseApplication.wsgi)
        logs.chown_what_is_opened()


def _taking_over(start: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(start)
    def take_over(arbiter: Any) -> None:
        if isinstance(arbiter, Arbiter) or not issubclass(arbiter.worker_class, Worker):
            start(arbiter)
            return
        if type(arbiter) is not gunicorn.arbiter.Arbiter:
            _refuse_subclass(arbiter)
        arbiter.__class__ = Arbiter
        arbiter.start()

    return take_over


def _refuse_subclass(arbiter: Any) -> NoReturn:
    """What a subclass overrides would be lost or, worse, half at work. Exit status 1, nothing is bound."""
    theirs, ours = type(arbiter), arbiter.cfg.worker_class_str
    reason = (
        f"{theirs.__module__}.{theirs.__qualname__} is a subclass of gunicorn's Arbiter, and {ours} brings "
        "an arbiter of its own; use gunicorn.arbiter.Arbiter, or another worker class"
    )
    arbiter.log.error("%s", reason)
    if arbiter.cfg.errorlog != "-":
        print(f"Error: {reason}", file=sys.stderr)
    sys.exit(1)


def _wrapping_hooks(set_number: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    """The constructor calls the first of the hooks, nworkers_changed: all of them are wrapped by then, and
    a preloaded app is not imported yet."""

    @functools.wraps(set_number)
    def wrap_and_set(arbiter: Any, number: int) -> None:
        if issubclass(arbiter.worker_class, Worker):
            loggers.use_format(arbiter.log, arbiter.cfg, resolution.log_format(arbiter.app))
            hooks.wrap(arbiter.cfg, arbiter.log)
            loggers.keep_enabled(loggers.ERROR, loggers.ACCESS)  # a preloaded app's configuration, too
            directories.adopt_shared_memory()
            app_metrics.prepare(arbiter.cfg)
        set_number(arbiter, number)

    return wrap_and_set


def _explaining(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``preload_app`` loads the app in the arbiter's constructor, where gunicorn shows a bare traceback."""

    @functools.wraps(load)
    def wsgi(application: Any) -> Any:
        try:
            return load(application)
        except (Exception, SystemExit) as exc:
            if application.cfg.preload_app and getattr(application, "callable", None) is None:
                _refuse(application, exc)
            raise

    return wsgi


def _refuse(application: Any, exc: BaseException) -> NoReturn:
    app = server_name(getattr(application, "app_uri", None) or "the app")
    text = "\n".join(filter(None, [failures.app_traceback(exc, app), f"Error: {failures.explain(exc, app)}"]))
    if application.cfg.errorlog != "-":
        logging.getLogger("gunicorn.error").error("%s", text)
    print(text, file=sys.stderr)
    sys.exit(gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR)
