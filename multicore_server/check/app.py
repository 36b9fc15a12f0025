"""Imports the app as ``--check-config`` does, and says what it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from multicore_server.check.finding import Finding
from multicore_server.settings.doubts import idle_threads
from multicore_server.settings.table import SettingError
from multicore_server.worker import failures
from multicore_server.worker.engine import interface_of

NAMES = {"asgi3": "ASGI", "asgi2": "ASGI 2", "wsgi": "WSGI", "factory": "a factory of an app"}


def app_findings(application: Any) -> Iterator[Finding]:
    """``application`` is gunicorn's, loaded. What the app prints goes to stderr."""
    uri = getattr(application, "app_uri", None)
    if uri is None and getattr(application, "app", None) is None:
        yield Finding("warning", "app: none is named, so the app is not checked")
        return
    name = uri or "the app"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            app = application.load()
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever the app's import raises
        yield Finding("error", failures.explain(exc, name), failures.app_traceback(exc, name))
        return
    try:
        interface = interface_of(application.cfg, app)
    except (ValueError, SettingError) as exc:
        yield Finding("error", str(exc))
        return
    yield Finding("note", f"app: {name} ({NAMES[interface]})")
    if interface.startswith("asgi") and (line := idle_threads(application.cfg)):
        yield Finding("warning", line)
